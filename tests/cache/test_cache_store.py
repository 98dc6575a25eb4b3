"""The store on a folder: the contract, exact round trips, and what it costs to look."""

from __future__ import annotations

import math
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cache_values import (
    SMALL_CHUNK,
    dtypes,
    files,
    key,
    put_tensor,
    raw_bytes,
    read_whole,
    records,
    shapes,
    work_in_progress,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from store_contract import StoreContract

import mergeflow
from mergeflow.cache.store import Cache
from mergeflow.dtypes import BFLOAT16, FLOAT32, DType

REPOSITORY = Path(mergeflow.__file__).parents[1]


class TestFolderStore(StoreContract):
    """A cache folder, with chunks as they are by default."""

    def open_store(self, folder: Path) -> Cache:
        return Cache(folder)


class TestFolderStoreOfSmallChunks(StoreContract):
    """A cache folder in which every tensor has many chunks."""

    def open_store(self, folder: Path) -> Cache:
        return Cache(folder, chunk_bytes=SMALL_CHUNK)


def same(left: object, right: object) -> bool:
    """Equal with equal types, floats by their bits."""
    if isinstance(left, float) and isinstance(right, float):
        return struct.pack("<d", left) == struct.pack("<d", right)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return list(left) == list(right) and all(same(left[name], right[name]) for name in left)
    return type(left) is type(right) and left == right


@settings(deadline=None)
@given(record=records, about=records)
def test_any_record_comes_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, record: dict[str, object], about: dict[str, object]
) -> None:
    """Whatever a record holds (nan, -0.0, big integers, odd keys) is read with the same types and bits."""
    cache = Cache(tmp_path_factory.mktemp("cache"))
    cache.write_record(key(1), record, about)
    assert same(cache.read_record(key(1)), record)
    assert same(cache.lookup([key(1)])[key(1)].about, about)


@pytest.mark.parametrize("value", [np.float32(1), {1: 2}, {1}, object()])
def test_a_record_of_other_things_is_refused(tmp_path: Path, value: object) -> None:
    """What would not come back equal is a TypeError, and nothing is written."""
    cache = Cache(tmp_path / "cache")
    with pytest.raises(TypeError):
        cache.write_record(key(1), {"x": value}, {})
    assert not cache.root.exists()


@settings(deadline=None)
@given(dtype=dtypes, shape=shapes, chunk_bytes=st.integers(1, 200), data=st.data())
def test_any_tensor_comes_back_whatever_the_blocks(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: DType,
    shape: tuple[int, ...],
    chunk_bytes: int,
    data: st.DataObject,
) -> None:
    """Bytes written in any blocks are read the same in any ranges, in any order."""
    cache = Cache(tmp_path_factory.mktemp("cache"), chunk_bytes=chunk_bytes)
    values = raw_bytes(dtype, shape)
    cuts = sorted(data.draw(st.lists(st.integers(0, values.size), max_size=5)))
    with cache.create_tensor(key(1), dtype, shape, {}) as writer:
        for start, stop in zip([0, *cuts], [*cuts, values.size], strict=True):
            writer.write(values[start:stop])
        size = writer.publish()
    assert cache.lookup([key(1)])[key(1)].nbytes == size == sum(path.stat().st_size for path in files(cache, key(1)))

    count = math.prod(shape)
    ranges = data.draw(st.lists(st.tuples(st.integers(0, count), st.integers(0, count)), max_size=6))
    with cache.open_tensor(key(1)) as reader:
        for start, stop in [*map(sorted, ranges), (0, count)]:
            out = np.full((stop - start) * dtype.itemsize, 0xAA, np.uint8)
            reader.read_into(start, out)
            assert np.array_equal(out, values[start * dtype.itemsize : stop * dtype.itemsize])


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_blocks_are_anything_with_bytes(tmp_path: Path, kind: type) -> None:
    """bytes, bytearray and memoryview are written as numpy arrays are, and the writable ones read into."""
    cache = Cache(tmp_path)
    with cache.create_tensor(key(1), BFLOAT16, (2, 2), {}) as writer:
        writer.write(kind(b"abc"))
        writer.write(kind(b""))
        writer.write(kind(b"defgh"))
        writer.publish()
    out = bytearray(4)
    with cache.open_tensor(key(1)) as reader:
        reader.read_into(1, memoryview(out))
    assert out == b"cdef"


def test_a_strided_buffer_is_refused(tmp_path: Path) -> None:
    """Bytes that are not contiguous are an error: reading into a copy of them would be lost."""
    cache = Cache(tmp_path)
    values = put_tensor(cache, key(1), FLOAT32, (4,))
    with cache.open_tensor(key(1)) as reader, pytest.raises(ValueError, match="contiguous"):
        reader.read_into(0, np.zeros(32, np.uint8)[::2])
    with cache.create_tensor(key(2), FLOAT32, (2,), {}) as writer, pytest.raises(ValueError, match="contiguous"):
        writer.write(values[::2])


def test_a_reader_outlives_its_entry(tmp_path: Path) -> None:
    """A tensor that is removed while it is read can be read to its end."""
    cache = Cache(tmp_path, chunk_bytes=SMALL_CHUNK)
    values = put_tensor(cache, key(1), FLOAT32, (100,))
    out = np.zeros(400, np.uint8)
    with cache.open_tensor(key(1)) as reader:
        reader.read_into(0, out[:40])
        cache.discard(key(1))
        reader.read_into(10, out[40:])
    assert np.array_equal(out, values)
    with pytest.raises(ValueError, match="closed"):
        reader.read_into(0, out)


def test_reading_marks_an_entry_as_used(tmp_path: Path) -> None:
    """`last_used` moves when an entry is read, `created` does not, and looking it up changes neither."""
    cache = Cache(tmp_path)
    cache.write_record(key(1), {}, {})
    put_tensor(cache, key(2), FLOAT32, (2,))
    long_ago = 1_000_000_000
    for name in (key(1), key(2)):
        os.utime(cache.folders.entry(name), (long_ago, long_ago))
        for path in files(cache, name):
            os.utime(path, (long_ago, long_ago))
    before = cache.lookup([key(1), key(2)])
    assert {(info.created, info.last_used) for info in before.values()} == {(long_ago, long_ago)}
    cache.read_record(key(1))
    read_whole(cache, key(2))
    after = cache.lookup([key(1), key(2)])
    assert all(info.created == long_ago < info.last_used for info in after.values())


def test_a_cache_travels_to_other_processes(tmp_path: Path) -> None:
    """A cache can be pickled, as Dask does, and still finds its entries."""
    cache = Cache(tmp_path)
    cache.write_record(key(1), {"x": 1}, {})
    assert pickle.loads(pickle.dumps(cache)).read_record(key(1)) == {"x": 1}


def test_work_in_progress_leaves_with_its_writer(tmp_path: Path) -> None:
    """After publishing, aborting, losing a race and discarding, nothing lies in .tmp."""
    cache = Cache(tmp_path)
    for _ in range(2):
        cache.write_record(key(1), {"x": 1}, {})
        put_tensor(cache, key(2), FLOAT32, (2,))
    with cache.create_tensor(key(3), FLOAT32, (2,), {}) as writer:
        assert len(work_in_progress(cache)) == 1
        writer.write(b"1234")
    cache.discard(key(2))
    assert work_in_progress(cache) == []


def test_garbage_in_the_tree_is_no_entry(tmp_path: Path) -> None:
    """Foreign files and folders, even in the places of entries, are misses, and give way to a real entry."""
    cache = Cache(tmp_path)
    cache.write_record(key(1), {"x": 1}, {})
    base = Path(cache.folders.base)
    (base / "zz").mkdir()
    (base / "01" / "notes.txt").write_text("hello")
    (base / "01" / ("0" * 64)).mkdir()
    (base / "02").write_text("a file where a folder belongs")
    (base / "03").mkdir()
    Path(cache.folders.entry(key(3))).write_text("a file where an entry belongs")
    (base / "04").mkdir()
    Path(cache.folders.entry(key(4))).mkdir()
    Path(cache.folders.entry(key(5))).mkdir(parents=True)
    (Path(cache.folders.entry(key(5))) / "stray").write_text("not zarr.json")

    names = [key(number) for number in range(600)]
    assert set(cache.lookup(names, on_damage=lambda error: None)) == {key(1)}
    for number in (2, 3, 4, 5):
        cache.write_record(key(number), {"x": number}, {})
        assert cache.read_record(key(number)) == {"x": number}


def test_looking_up_imports_nothing_heavy(tmp_path: Path) -> None:
    """Planning looks keys up and reads statistics without numpy, zarr or torch."""
    program = (
        "import sys; from pathlib import Path\n"
        "from mergeflow.cache.store import Cache; from mergeflow.cache import care\n"
        "cache = Cache(Path(sys.argv[1])); key = 'ab' * 32\n"
        "cache.write_record(key, {'x': float('nan')}, {}); cache.lookup([key]); cache.read_record(key)\n"
        "care.usage(cache)\n"
        "print(sorted({'numpy', 'zarr', 'zarrs', 'torch', 'dask'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
