"""Damage of every kind is found, and is a miss: a value is right or it is computed again."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
from blake3 import blake3
from cache_values import SMALL_CHUNK, files, key, put_tensor, read_whole
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeflow.cache.store import Cache
from mergeflow.dtypes import BFLOAT16, FLOAT32
from mergeflow.errors import CorruptEntry

RECORD, TENSOR = key(1), key(2)


def filled(folder: Path) -> Cache:
    """A cache of a record and a tensor of several chunks, the last of them padded."""
    cache = Cache(folder, chunk_bytes=SMALL_CHUNK)
    cache.write_record(RECORD, {"threshold": 0.25, "nan": float("nan")}, {"op": "kth_magnitude"})
    put_tensor(cache, TENSOR, BFLOAT16, (7, 9))
    return cache


def damage_found(cache: Cache, name: str) -> list[CorruptEntry]:
    """Looks the entry up, which must miss, and returns what was said."""
    found: list[CorruptEntry] = []
    assert cache.lookup([name], on_damage=found.append) == {}
    return found


@settings(deadline=None, max_examples=200)
@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), which=st.sampled_from([0, 1, 2]))
def test_a_flipped_byte_anywhere_is_found(
    tmp_path_factory: pytest.TempPathFactory, where: float, flip: int, which: int
) -> None:
    """Change any byte of any file of an entry, padding and chunk index included: reading it says so."""
    cache = filled(tmp_path_factory.mktemp("cache"))
    path = [*files(cache, RECORD), *files(cache, TENSOR)][which]
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= flip
    path.write_bytes(content)

    name = path.parent.name
    with pytest.raises(CorruptEntry) as raised:
        cache.read_record(name) if name == RECORD else read_whole(cache, name)
    assert raised.value.key == name
    if path.name == "zarr.json":
        assert [error.key for error in damage_found(cache, name)] == [name]


@settings(deadline=None, max_examples=100)
@given(where=st.floats(0, 1, exclude_max=True), which=st.sampled_from([0, 1, 2]))
def test_a_truncated_file_is_a_miss(tmp_path_factory: pytest.TempPathFactory, where: float, which: int) -> None:
    """An entry with a file cut short at any place, as after a power cut, is a miss without being read."""
    cache = filled(tmp_path_factory.mktemp("cache"))
    path = [*files(cache, RECORD), *files(cache, TENSOR)][which]
    os.truncate(path, int(where * path.stat().st_size))
    assert len(damage_found(cache, path.parent.name)) == 1
    with pytest.raises(CorruptEntry):
        cache.read_record(RECORD) if path.parent.name == RECORD else cache.open_tensor(TENSOR)


@pytest.mark.parametrize("which", [0, 1])
def test_a_longer_file_is_a_miss(tmp_path: Path, which: int) -> None:
    """A file with bytes added at its end is damaged too."""
    cache = filled(tmp_path)
    with files(cache, TENSOR)[which].open("ab") as file:
        file.write(b"\n")
    assert len(damage_found(cache, TENSOR)) == 1


@pytest.mark.parametrize("missing", ["zarr.json", "c.0.0"])
def test_a_missing_file_is_a_miss(tmp_path: Path, missing: str) -> None:
    """Chunks that are not there are never read as zeros, which is what zarr readers make of them."""
    cache = filled(tmp_path)
    (Path(cache.folders.entry(TENSOR)) / missing).unlink()
    assert [error.reason for error in damage_found(cache, TENSOR)] == [f"{missing} is missing"]
    with pytest.raises(CorruptEntry, match="missing"):
        cache.open_tensor(TENSOR)


def test_a_tensor_that_shrinks_while_it_is_read_is_found(tmp_path: Path) -> None:
    """A file that is cut after it was opened is damage, not a crash or stale bytes."""
    cache = filled(tmp_path)
    with cache.open_tensor(TENSOR) as reader:
        os.truncate(files(cache, TENSOR)[0], 100)
        with pytest.raises(CorruptEntry, match="cut short"):
            reader.read_into(60, bytearray(4))


def test_chunks_that_change_places_with_zeros_are_found(tmp_path: Path) -> None:
    """A file that kept its size but lost its content, as some file systems leave it, is damaged."""
    cache = filled(tmp_path)
    path = files(cache, TENSOR)[0]
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(CorruptEntry):
        read_whole(cache, TENSOR)


def test_a_good_chunk_is_read_beside_a_bad_one(tmp_path: Path) -> None:
    """Each chunk is checked by itself, and after a bad one was met a good one is still read right."""
    cache = Cache(tmp_path, chunk_bytes=SMALL_CHUNK)
    values = put_tensor(cache, TENSOR, FLOAT32, (36,))  # three chunks of 12
    path = files(cache, TENSOR)[0]
    content = bytearray(path.read_bytes())
    content[60] ^= 1  # in the second chunk
    path.write_bytes(content)
    out = bytearray(8)
    with cache.open_tensor(TENSOR) as reader:
        reader.read_into(0, out)
        for _ in range(2):
            with pytest.raises(CorruptEntry, match="chunk 1"):
                reader.read_into(12, out)
        for start in (0, 24):
            reader.read_into(start, out)
            assert out == bytes(values[start * 4 : start * 4 + 8])


def test_a_renamed_entry_is_not_taken_for_another(tmp_path: Path) -> None:
    """An entry that was moved to another key by hand is damage there: its key stands inside it."""
    cache = filled(tmp_path)
    shutil.copytree(cache.folders.entry(RECORD), cache.folders.entry(key(3)))
    assert [error.reason for error in damage_found(cache, key(3))] == [f"it is the value of {RECORD}"]


def test_an_unknown_format_is_a_quiet_miss_and_is_replaced(tmp_path: Path) -> None:
    """What another version of mergeflow wrote is neither read nor damage, and publishing replaces it."""
    cache = filled(tmp_path)
    path = files(cache, RECORD)[0]
    text = path.read_bytes()
    body = text[: text.rindex(b',"seal"')].replace(b'"format":1', b'"format":2')
    path.write_bytes(body + b',"seal":"' + blake3(body).hexdigest()[:32].encode() + b'"}}}')
    assert damage_found(cache, RECORD) == []
    with pytest.raises(CorruptEntry, match="format"):
        cache.read_record(RECORD)
    cache.write_record(RECORD, {"threshold": 0.5}, {})
    assert cache.read_record(RECORD) == {"threshold": 0.5}


def test_a_document_without_our_fields_is_damage(tmp_path: Path) -> None:
    """A zarr.json that another program wrote in an entry's place is damage with a reason, not a crash."""
    cache = filled(tmp_path)
    files(cache, RECORD)[0].write_text(json.dumps({"zarr_format": 3, "node_type": "group"}))
    assert len(damage_found(cache, RECORD)) == 1


@pytest.mark.parametrize("name", [RECORD, TENSOR])
def test_publishing_replaces_a_damaged_entry(tmp_path: Path, name: str) -> None:
    """The first of two entries stays only when it is whole: else a value could never be repaired."""
    cache = filled(tmp_path)
    os.truncate(files(cache, name)[0], 10)
    if name == RECORD:
        cache.write_record(RECORD, {"threshold": 0.25}, {})
        assert cache.read_record(RECORD) == {"threshold": 0.25}
    else:
        values = put_tensor(cache, TENSOR, BFLOAT16, (7, 9), seed=1)
        assert bytes(read_whole(cache, TENSOR)) == bytes(values)


def test_damage_is_a_warning_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Unless the caller listens itself, a damaged entry is warned of by its key."""
    cache = filled(tmp_path)
    os.truncate(files(cache, RECORD)[0], 10)
    with caplog.at_level(logging.WARNING, logger="mergeflow.cache"):
        assert set(cache.lookup([RECORD, TENSOR])) == {TENSOR}
    assert RECORD[:12] in caplog.text
    assert "counts as a miss" in caplog.text
