"""A disk that fails, and folders that cannot be used."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
from cache_values import SMALL_CHUNK, key, raw_bytes, work_in_progress
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeflow.cache.store import Cache
from mergeflow.dtypes import FLOAT32
from mergeflow.errors import CacheError

SHAPE = (7, 9)


class FailingFile(io.FileIO):
    """A file on a disk with room for `room` bytes more, shared by all its files."""

    def __init__(self, path: str, room: list[int], fault: int) -> None:
        super().__init__(path, "xb")
        self._room = room
        self._fault = fault

    def write(self, block: object) -> int:
        size = memoryview(block).nbytes  # type: ignore[arg-type]
        if size > self._room[0]:
            raise OSError(self._fault, os.strerror(self._fault))
        self._room[0] -= size
        return super().write(block)  # type: ignore[arg-type]


def disk(room: int, fault: int) -> Callable[[str], BinaryIO]:
    """Creates files on a disk that fails with `fault` after `room` bytes."""
    left = [room]
    return lambda path: io.BufferedWriter(FailingFile(path, left, fault), buffer_size=64)


def write_tensor(cache: Cache) -> int:
    values = raw_bytes(FLOAT32, SHAPE)
    with cache.create_tensor(key(1), FLOAT32, SHAPE, {}) as writer:
        writer.write(values[:100])
        writer.write(values[100:])
        return writer.publish()


def write_record(cache: Cache) -> int:
    return cache.write_record(key(1), {"x": 0.5}, {})


@settings(deadline=None)
@given(
    fraction=st.floats(0, 1, exclude_max=True),
    fault=st.sampled_from([errno.ENOSPC, errno.EIO, errno.EDQUOT]),
    write=st.sampled_from([write_tensor, write_record]),
)
def test_a_full_disk_leaves_nothing(
    tmp_path_factory: pytest.TempPathFactory, fraction: float, fault: int, write: Callable[[Cache], int]
) -> None:
    """Wherever the disk fails while an entry is written, the caller gets that OSError and nothing of it is left."""
    needed = write(Cache(tmp_path_factory.mktemp("whole"), chunk_bytes=SMALL_CHUNK))
    folder = tmp_path_factory.mktemp("full")
    cache = Cache(folder, create=disk(int(fraction * needed), fault), chunk_bytes=SMALL_CHUNK)
    with pytest.raises(OSError, match=os.strerror(fault)) as raised:
        write(cache)
    assert raised.value.errno == fault
    assert cache.lookup([key(1)]) == {}
    assert work_in_progress(cache) == []
    # With room again, the same key is written.
    assert write(Cache(folder, create=disk(needed, fault), chunk_bytes=SMALL_CHUNK)) == needed
    assert set(cache.lookup([key(1)])) == {key(1)}


def test_a_writer_that_failed_says_so_again(tmp_path: Path) -> None:
    """After a failure the writer is closed: going on as if nothing had happened is refused."""
    cache = Cache(tmp_path, create=disk(0, errno.ENOSPC), chunk_bytes=SMALL_CHUNK)
    writer = cache.create_tensor(key(1), FLOAT32, SHAPE, {})
    with pytest.raises(OSError, match="space"):
        writer.write(raw_bytes(FLOAT32, SHAPE))
    with pytest.raises(ValueError, match="aborted"):
        writer.publish()
    writer.abort()


def test_a_file_that_cannot_be_created_leaves_nothing(tmp_path: Path) -> None:
    """When not even a file can be created, the caller gets the OSError and nothing is left."""

    def create(path: str) -> BinaryIO:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cache = Cache(tmp_path, create=create)
    for write in (write_tensor, write_record):
        with pytest.raises(OSError, match="space"):
            write(cache)
    assert work_in_progress(cache) == []


def test_work_that_was_swept_away_is_an_error(tmp_path: Path) -> None:
    """A writer whose unfinished work somebody deleted gets an OSError, and nothing is published."""
    cache = Cache(tmp_path)
    values = raw_bytes(FLOAT32, SHAPE)
    with cache.create_tensor(key(1), FLOAT32, SHAPE, {}) as writer:
        writer.write(values)
        cache.sweep()
        os.rename(cache.folders.works, tmp_path / "elsewhere")
        with pytest.raises(FileNotFoundError):
            writer.publish()
    assert cache.lookup([key(1)]) == {}


def test_a_file_in_the_place_of_the_cache_is_refused(tmp_path: Path) -> None:
    """A cache path that is a file, or lies below one, is a CacheError that names it; looking finds nothing."""
    (tmp_path / "file").write_text("mine")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        cache = Cache(root)
        assert cache.lookup([key(1)]) == {}
        with pytest.raises(CacheError, match="file"):
            write_record(cache)
        with pytest.raises(CacheError, match="file"):
            write_tensor(cache)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_foreign_folder_is_not_taken_over(tmp_path: Path) -> None:
    """A folder v1 with somebody's files in it never becomes a cache, which `clear` would then empty."""
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "thesis.tex").write_text("mine")
    with pytest.raises(CacheError, match="is not a mergeflow cache"):
        write_record(Cache(tmp_path))
    assert (tmp_path / "v1" / "thesis.tex").read_text() == "mine"


def test_an_unfinished_cache_folder_is_adopted(tmp_path: Path) -> None:
    """A process killed between making the folder and its tag does not make the cache unusable."""
    (tmp_path / "v1" / ".tmp").mkdir(parents=True)
    cache = Cache(tmp_path)
    (tmp_path / "v1" / ".tmp").rmdir()
    write_record(cache)
    assert cache.folders.is_ours()
