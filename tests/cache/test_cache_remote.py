"""A cache shared through a store: what one machine knows all know, and nothing of a stranger's is believed.

The store is obstore's own in memory; `test_cache_remote_s3.py` speaks the real protocol.
"""

from __future__ import annotations

import errno
import json
import sys
import threading
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, ClassVar

import numpy as np
import obstore
import pytest
from cache_values import dtypes, key, put_tensor, raw_bytes, read_whole, records, shapes, work_in_progress
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from obstore.store import MemoryStore
from store_contract import StoreContract
from tiers_of_machines import URL, folder_of, machine, objects

from mergeflow.cache.document import Secret, encode_record, encode_tensor, sealed_with
from mergeflow.cache.layout import Layout
from mergeflow.cache.remote import REQUESTS_AT_A_TIME, Found, Remote, StoreDown, StoreRefuses, connect
from mergeflow.cache.sharing import MOST_DAMAGED
from mergeflow.cache.store import Cache
from mergeflow.cache.tiers import MOST_DOCUMENT_BYTES, TieredCache
from mergeflow.dtypes import BFLOAT16, FLOAT32, DType, by_name
from mergeflow.errors import CacheError, CorruptEntry, LostEntry

ABOUT = {"op": "trim", "version": 1}


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


class TestTieredCache(StoreContract):
    """A local tier in front of a store does all that a folder alone does."""

    def open_store(self, folder: Path) -> Cache:
        self.stores = getattr(self, "stores", {})
        return machine(folder, self.stores.setdefault(folder, MemoryStore()))


@settings(max_examples=15, deadline=None)
@given(dtypes, shapes, records)
def test_what_one_machine_writes_another_reads(dtype: DType, shape: tuple[int, ...], record: dict[str, object]) -> None:
    """A tensor of any dtype and shape, and any record, come to another machine bit for bit, and then lie there too."""
    store = MemoryStore()
    with TemporaryDirectory() as folder:
        here, there = machine(Path(folder, "here"), store), machine(Path(folder, "there"), store)
        values = put_tensor(here, key(1), dtype, shape)
        here.write_record(key(2), record, ABOUT)
        here.settle()

        found = there.lookup([key(1), key(2), key(3)])
        expected = {key(2): "record"} | ({key(1): "tensor"} if values.size else {})
        assert {name: info.kind for name, info in found.items()} == expected
        assert repr(there.read_record(key(2))) == repr(here.read_record(key(2)))
        if values.size:
            assert np.array_equal(read_whole(there, key(1)), values)
        alone = Cache(there.root)
        assert set(alone.lookup([key(1), key(2)])) == set(expected)
        assert here.warnings() == there.warnings() == ()


def test_a_tensor_without_elements_is_not_shared(store: MemoryStore, tmp_path: Path) -> None:
    """It would look like a record in a list of names, and takes nothing to compute."""
    put_tensor(machine(tmp_path / "a", store), key(1), FLOAT32, (0, 3))
    assert objects(store) == {}


def test_the_document_is_put_last(store: MemoryStore, tmp_path: Path) -> None:
    """While the chunks are put, and when that fails, others see no entry."""

    class Watched(Remote):
        written: ClassVar[list[str]] = []

        def write(self, name: str, content: object) -> None:
            self.written.append(name.rpartition("/")[2])
            if name.endswith("zarr.json"):
                raise StoreDown("the line was cut")
            super().write(name, content)  # type: ignore[arg-type]

    here = machine(tmp_path / "a", store, remote=Watched)
    put_tensor(here, key(1), FLOAT32, (9,))
    assert Watched.written == ["c.0", "zarr.json"]
    assert machine(tmp_path / "b", store).lookup([key(1)]) == {}
    assert len(here.warnings()) == 1


# Damage


def spoil(store: MemoryStore, name: str, content: bytes) -> None:
    obstore.put(store, name, content)


def assert_refused(cache: TieredCache, name: str, words: str) -> None:
    """Reading `name` fails naming it and the store, leaves nothing, and from then on it is a miss."""
    read = cache.open_tensor if cache.lookup([name])[name].kind == "tensor" else cache.read_record
    with pytest.raises(CorruptEntry, match=words) as caught:
        read(name)
    assert name[:12] in str(caught.value)
    assert URL in str(caught.value)
    assert not Path(cache.folders.entry(name)).exists()
    assert work_in_progress(cache) == []
    assert cache.lookup([name]) == {}


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_flipped_byte_is_found(data: st.DataObject) -> None:
    """A byte changed anywhere in an entry's objects: refused before a value is used, computed, and replaced."""
    store = MemoryStore()
    with TemporaryDirectory() as folder:
        here = machine(Path(folder, "here"), store)
        values = put_tensor(here, key(1), FLOAT32, (5, 20))
        name = data.draw(st.sampled_from(sorted(objects(store))))
        content = bytearray(objects(store)[name])
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        spoil(store, name, bytes(content))

        there = machine(Path(folder, "there"), store)
        assert_refused(there, key(1), "is damaged")
        put_tensor(there, key(1), FLOAT32, (5, 20))
        assert np.array_equal(read_whole(machine(Path(folder, "third"), store), key(1)), values)
        Cache(there.root).discard(key(1))
        assert key(1) in there.lookup([key(1)]), "what it has replaced it trusts again"


@pytest.mark.parametrize("change", [lambda old: old[:-1], lambda old: old + b"x", lambda old: b""])
def test_chunks_of_another_size_are_not_fetched(store: MemoryStore, tmp_path: Path, change: object) -> None:
    """The size of the chunks is held against the document before any of them is read."""
    put_tensor(machine(tmp_path / "a", store), key(1), FLOAT32, (50,))
    name = f"{folder_of(key(1))}/c.0"
    spoil(store, name, change(objects(store)[name]))  # type: ignore[operator]
    assert_refused(machine(tmp_path / "b", store), key(1), r"its chunks take \d+ bytes where \d+ are needed")


def test_chunks_that_went_missing_are_damage(store: MemoryStore, tmp_path: Path) -> None:
    """Chunks that somebody removed after the entry was listed."""
    put_tensor(machine(tmp_path / "a", store), key(1), FLOAT32, (50,))
    there = machine(tmp_path / "b", store)
    assert key(1) in there.lookup([key(1)])
    obstore.delete(store, f"{folder_of(key(1))}/c.0")
    assert_refused(there, key(1), "its chunks are not there")


def tensor_text(shape: tuple[int, ...], chunk: tuple[int, ...], name: str = key(1), **fields: object) -> bytes:
    """A properly sealed document of a tensor with fields that ours never have."""
    text = encode_tensor(name, by_name("uint8"), Layout((1,), (1,), 1), ABOUT, "0" * 64)
    node = json.loads(text)
    ours = node["attributes"]["mergeflow"]
    node["shape"], ours["chunk"] = shape, chunk
    ours.update(fields)
    ours["seal"] = ours.pop("seal")
    return sealed_with(json.dumps(node, separators=(",", ":")).encode(), None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (tensor_text((1 << 50,), (1 << 20,)), "do not fit onto the disk"),
        (tensor_text((1 << 40, 1 << 40), (1, 1)), "no tensor has"),
        (tensor_text((1 << 40,), (1 << 40,)), "larger than memory"),
        (tensor_text((4,), (0,)), "no tensor has"),
        (tensor_text((4, 4), (2, 2)), "no contiguous runs"),
        (tensor_text((4,), (1, 1)), "dimensions"),
        (tensor_text((1,) * 33, (1,) * 33), "dimensions"),
        (tensor_text((-1,), (1,)), "whole numbers"),
        (tensor_text((1,), (1,), digest=None), "no digest"),
        (tensor_text((1,), (1,), digest="../../etc"), "64 hexadecimal"),
        (tensor_text((1,), (1,), key(2)), "it is the value of"),
        (tensor_text((1,), (1,), format=99), "a format this version does not know"),
        (tensor_text((1,), (1,), kind=["record"]), "damaged"),
        (tensor_text((1,), (1,), about=3), "damaged"),
        (b"", "changed or cut short"),
        (b"{}", "changed or cut short"),
    ],
)
def test_a_sealed_document_is_not_believed(store: MemoryStore, tmp_path: Path, text: bytes, words: str) -> None:
    """Whoever writes into the store can seal: sizes, shapes, names and digests are checked one by one."""
    spoil(store, f"{folder_of(key(1))}/zarr.json", text)
    spoil(store, f"{folder_of(key(1))}/c.0", b"\0" * 5)
    assert_refused(machine(tmp_path / "b", store), key(1), words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b" " * (MOST_DOCUMENT_BYTES + 1), "bytes where at most"),
        (encode_record(key(1), {"x": 1}, {}).replace(b'"x":1', b'"x":' + b"[" * 9999 + b"]" * 9999), "deep"),
    ],
)
def test_a_monstrous_document_is_refused(store: MemoryStore, tmp_path: Path, text: bytes, words: str) -> None:
    """A document larger than any of ours is not fetched, one that is nested too deeply no crash."""
    spoil(store, f"{folder_of(key(1))}/zarr.json", sealed_with(text, None) if len(text) < 1 << 20 else text)
    assert_refused(machine(tmp_path / "b", store), key(1), words)


@pytest.mark.parametrize(
    "name",
    [
        "v1/../../../evil/zarr.json",
        "v1/01/evil/zarr.json",
        f"v1/01/{key(1)}/deeper/zarr.json",
        f"v1/02/{key(1)}/zarr.json",
        f"v1/01/{key(1).upper().replace('0', 'A')}/zarr.json",
        f"v1/01/{key(1)}/c.0",
        f"v1/01/{key(1)}/zarr.json.bak",
        f"{key(1)}/zarr.json",
    ],
)
def test_names_that_no_entry_has_are_passed_over(store: MemoryStore, tmp_path: Path, name: str) -> None:
    """Only names that we would have written for a key that was asked for count, listed together or one by one."""
    path = name.replace("..", "dots") if ".." in name else name
    spoil(store, path, encode_record(key(1), {"x": 1}, {}))
    there = machine(tmp_path / "b", store)
    assert there.lookup([key(1)]) == {}
    assert machine(tmp_path / "c", store).lookup([key(1), key(257)]) == {}
    assert not there.root.exists()


def test_a_store_with_many_damaged_entries_is_not_read_any_more(store: MemoryStore, tmp_path: Path) -> None:
    """After a few damaged entries it is the store that is bad: one warning, and nothing more is read from it."""
    for number in range(MOST_DAMAGED + 1):
        spoil(store, f"{folder_of(key(number))}/zarr.json", b"rubbish")
    there = machine(tmp_path / "b", store)
    for number in range(MOST_DAMAGED):
        assert_refused(there, key(number), "is damaged")
    assert there.lookup([key(MOST_DAMAGED)]) == {}
    with pytest.raises(LostEntry, match="not read any more"):
        there.read_record(key(MOST_DAMAGED))
    (warning,) = there.warnings()
    assert f"{URL} has {MOST_DAMAGED} damaged entries" in warning
    there.write_record(key(77), {}, ABOUT)
    there.settle()
    assert key(77) in machine(tmp_path / "c", store).lookup([key(77)])


def test_a_damaged_local_entry_is_fetched_anew(store: MemoryStore, tmp_path: Path) -> None:
    """What is damaged here and whole in the store is a hit, and mended by reading it."""
    here = machine(tmp_path / "a", store)
    values = put_tensor(here, key(1), FLOAT32, (50,))
    Path(here.folders.entry(key(1)), "zarr.json").write_text("{}")
    again = machine(tmp_path / "a", store)
    assert key(1) in again.lookup([key(1)], on_damage=lambda error: None)
    assert np.array_equal(read_whole(again, key(1)), values)


def test_a_full_disk_here_costs_a_warning(store: MemoryStore, tmp_path: Path) -> None:
    """No room for what the store has: said once, nothing half-fetched is left, and the run computes instead."""
    put_tensor(machine(tmp_path / "a", store), key(1), FLOAT32, (50,))

    def full(path: str) -> BinaryIO:
        Path(path).touch()
        raise OSError(errno.ENOSPC, "No space left on device", path)

    there = replace(machine(tmp_path / "b", store), create=full)
    assert key(1) in there.lookup([key(1)])
    with pytest.raises(LostEntry, match="no room"):
        there.open_tensor(key(1))
    assert work_in_progress(there) == []
    assert there.lookup([key(1)]) == {}
    (warning,) = there.warnings()
    assert str(tmp_path / "b") in warning


# The secret


def test_with_a_secret_only_what_was_sealed_with_it_is_believed(store: MemoryStore, tmp_path: Path) -> None:
    """An entry sealed plainly, or with another secret, is refused; one sealed with ours is read."""
    put_tensor(machine(tmp_path / "plain", store), key(1), FLOAT32, (50,))
    put_tensor(machine(tmp_path / "other", store, secret="other"), key(2), FLOAT32, (50,))
    values = put_tensor(machine(tmp_path / "ours", store, secret="ours"), key(3), FLOAT32, (50,))

    there = machine(tmp_path / "b", store, secret="ours")
    assert_refused(there, key(1), r"not sealed with \$MERGEFLOW_CACHE_SECRET")
    assert_refused(there, key(2), "changed or cut short .or has another secret.")
    assert np.array_equal(read_whole(there, key(3)), values)
    assert_refused(machine(tmp_path / "c", store), key(3), "changed or cut short")


def test_the_local_tier_of_a_secret_cache_is_a_plain_cache(store: MemoryStore, tmp_path: Path) -> None:
    """Here entries have the plain seal, so that the commands that look after a cache need no secret."""
    put_tensor(machine(tmp_path / "a", store, secret="ours"), key(1), FLOAT32, (50,))
    there = machine(tmp_path / "b", store, secret="ours")
    read_whole(there, key(1))
    assert set(Cache(tmp_path / "a").lookup([key(1)])) == set(Cache(tmp_path / "b").lookup([key(1)])) == {key(1)}
    assert b"ours" not in b"".join(objects(store).values())
    assert "ours" not in repr(Secret.of("ours"))


# A store that fails


class Down(Remote):
    """A store that does not answer."""

    asked = 0

    def connected(self) -> MemoryStore:  # type: ignore[override]
        type(self).asked += 1
        raise StoreDown("connection refused")


class ReadOnly(Remote):
    def write(self, name: str, content: object) -> None:
        raise StoreRefuses("access is denied")


class Closed(Remote):
    def find(self, keys: Collection[str]) -> dict[str, Found]:
        raise StoreRefuses("there is no such bucket")


def test_a_store_that_is_down_stops_nothing(store: MemoryStore, tmp_path: Path) -> None:
    """One warning; what is here is found, what is written lies here; the store is asked again after a minute."""
    now = [0.0]
    Down.asked = 0
    cache = machine(tmp_path / "a", store, remote=lambda url, make: Down(url, make, lambda: now[0]))
    assert cache.lookup([key(1), key(2)]) == {}
    cache.check()
    values = put_tensor(cache, key(1), BFLOAT16, (40,))
    cache.write_record(key(2), {"x": 1}, ABOUT)
    cache.fetch([key(2), key(3)])
    cache.settle()
    assert np.array_equal(read_whole(cache, key(1)), values)
    assert set(cache.lookup([key(1), key(2), key(3)])) == {key(1), key(2)}
    (warning,) = cache.warnings()
    assert URL in warning
    assert "connection refused" in warning
    assert Down.asked == 1
    now[0] = 61.0
    assert cache.lookup([key(3)]) == {}
    assert Down.asked == 2


def test_a_hit_that_cannot_be_fetched_is_a_lost_entry(store: MemoryStore, tmp_path: Path) -> None:
    """A store that goes down between looking and reading: the run hears that one entry is lost, and plans again."""
    put_tensor(machine(tmp_path / "a", store), key(1), FLOAT32, (50,))

    class Failing(Remote):
        def read(self, name: str, limit: int) -> bytes | None:
            raise StoreDown("timed out")

    there = machine(tmp_path / "b", store, remote=Failing)
    assert key(1) in there.lookup([key(1)])
    with pytest.raises(LostEntry, match=r"cannot be fetched: s3://bucket/prefix: timed out"):
        there.open_tensor(key(1))
    assert there.lookup([key(1)]) == {}
    assert len(there.warnings()) == 1


def test_a_store_that_may_not_be_read_is_an_error_at_once(store: MemoryStore, tmp_path: Path) -> None:
    """A wrong bucket or wrong credentials are a mistake of the user's: said before anything is computed."""
    cache = machine(tmp_path / "a", store, remote=Closed)
    for ask in (cache.check, lambda: cache.lookup([key(1)])):
        with pytest.raises(CacheError, match="s3://bucket/prefix cannot be used: there is no such bucket"):
            ask()


def test_a_store_that_lists_what_may_not_be_read_costs_a_warning(store: MemoryStore, tmp_path: Path) -> None:
    """Rights to list and not to read: said once; its entries are no hits any more, and none of them is called damaged."""
    here = machine(tmp_path / "a", store)
    for number in range(2 * MOST_DAMAGED):
        here.write_record(key(number), {}, ABOUT)
    here.settle()

    class Sealed(Remote):
        def read(self, name: str, limit: int) -> bytes | None:
            raise StoreRefuses("access is denied")

    there = machine(tmp_path / "b", store, remote=Sealed)
    for name in there.lookup([key(number) for number in range(2 * MOST_DAMAGED)]):
        with pytest.raises(LostEntry):
            there.read_record(name)
        there.discard(name)
    assert there.lookup([key(1)]) == {}
    (warning,) = there.warnings()
    assert warning.startswith(f"the cache {URL} cannot be read (access is denied)")


def test_a_store_that_may_not_be_written_is_read_all_the_same(store: MemoryStore, tmp_path: Path) -> None:
    """A bucket one may only read serves; that nothing is put there is said once."""
    values = put_tensor(machine(tmp_path / "a", store), key(1), FLOAT32, (50,))
    there = machine(tmp_path / "b", store, remote=ReadOnly)
    for number in range(3, 6):
        put_tensor(there, key(number), FLOAT32, (50,))
    assert np.array_equal(read_whole(there, key(1)), values)
    (warning,) = there.warnings()
    assert "cannot be written (access is denied)" in warning


def test_without_obstore_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL without the package that speaks to stores: one sentence that says what to install."""
    for name in [name for name in sys.modules if name.split(".")[0] == "obstore"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(CacheError, match=r"pip install 'mergeflow\[s3\]'"):
        Remote(URL, lambda: connect(URL)).find([key(1)])


# What it costs


def test_what_is_here_asks_nothing_of_the_store(store: MemoryStore, tmp_path: Path) -> None:
    """Hits of the local tier cost no request."""
    put_tensor(machine(tmp_path / "a", store), key(1), FLOAT32, (50,))
    Down.asked = 0
    alone = machine(tmp_path / "a", store, remote=Down)
    assert key(1) in alone.lookup([key(1)])
    read_whole(alone, key(1))
    assert Down.asked == 0


@pytest.fixture
def lists(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The pages of lists that were asked for."""
    asked: list[str] = []
    real = obstore.list

    def counted(store: MemoryStore, prefix: str, **how: object) -> Iterator[object]:
        asked.append(prefix)
        for number, page in enumerate(real(store, prefix, chunk_size=10)):
            asked.extend([prefix] if number else [])
            yield page

    monkeypatch.setattr(obstore, "list", counted)
    return asked


def test_a_large_plan_takes_few_requests(store: MemoryStore, tmp_path: Path, lists: list[str]) -> None:
    """Keys that share their first digits are looked up by one list; a second look asks nothing."""
    here = machine(tmp_path / "a", store)
    for number in range(0, 600, 200):
        here.write_record(key(number), {}, ABOUT)
    here.settle()
    there = machine(tmp_path / "b", store)
    keys = [key(number) for number in range(512)]
    assert set(there.lookup(keys)) == {key(0), key(200), key(400)}
    assert len(lists) == 256
    there.lookup(keys)
    assert len(lists) == 256


def test_a_run_begins_with_fresh_answers(store: MemoryStore, tmp_path: Path) -> None:
    """What others put there since the last run is found by the next one in the same process."""
    here, there = machine(tmp_path / "a", store), machine(tmp_path / "b", store)
    assert there.lookup([key(1)]) == {}
    here.write_record(key(1), {}, ABOUT)
    here.settle()
    there.check()
    assert key(1) in there.lookup([key(1)])


def test_a_huge_store_takes_no_more_than_two_requests_a_key(
    store: MemoryStore, tmp_path: Path, lists: list[str]
) -> None:
    """A folder of more pages than keys is given up, and its keys are asked for one by one; all are found."""
    here = machine(tmp_path / "a", store)
    for number in range(60):
        here.write_record(key(256 * number), {}, ABOUT)
    put_tensor(here, key(256 * 59 + 0), FLOAT32, (9,))
    put_tensor(here, key(256 * 100), FLOAT32, (9,))
    here.settle()
    keys = [key(256 * number) for number in (2, 57, 100, 999)]
    found = machine(tmp_path / "b", store).lookup(keys)
    assert {name: info.kind for name, info in found.items()} == dict(
        zip(keys, ("record", "record", "tensor"), strict=False)
    )
    assert len(lists) <= 2 * len(keys)


def test_an_entry_is_fetched_once_whoever_reads_it(store: MemoryStore, tmp_path: Path) -> None:
    """Threads that open the same tensor wait for the one that fetches it."""
    values = put_tensor(machine(tmp_path / "a", store), key(1), FLOAT32, (50,))

    class Counting(Remote):
        reads: ClassVar[list[str]] = []

        def read(self, name: str, limit: int) -> bytes | None:
            self.reads.append(name)
            return super().read(name, limit)

    there = machine(tmp_path / "b", store, remote=Counting)
    with ThreadPoolExecutor(8) as pool:
        assert all(np.array_equal(found, values) for found in pool.map(read_whole, [there] * 8, [key(1)] * 8))
    assert len(Counting.reads) == 1


def test_records_are_fetched_many_at_a_time(store: MemoryStore, tmp_path: Path) -> None:
    """What a plan needs comes side by side: no request waits for another one to end."""
    here = machine(tmp_path / "a", store)
    numbers = range(REQUESTS_AT_A_TIME)
    for number in numbers:
        here.write_record(key(number), {"x": number}, ABOUT)
    here.settle()
    together = threading.Barrier(REQUESTS_AT_A_TIME, timeout=30)

    class Meeting(Remote):
        def read(self, name: str, limit: int) -> bytes | None:
            together.wait()
            return super().read(name, limit)

    there = machine(tmp_path / "b", store, remote=Meeting)
    there.fetch(key(number) for number in numbers)
    assert [there.read_record(key(number))["x"] for number in numbers] == list(numbers)


def test_an_entry_written_before_it_was_shared_can_be_shared(store: MemoryStore, tmp_path: Path) -> None:
    """A tensor that a cache for one machine had without a digest gets one when the same folder becomes a local tier."""
    values = put_tensor(Cache(tmp_path / "a", chunk_bytes=48), key(1), FLOAT32, (50,))
    put_tensor(machine(tmp_path / "a", store), key(1), FLOAT32, (50,))
    assert np.array_equal(read_whole(machine(tmp_path / "b", store), key(1)), values)


class Machines(RuleBasedStateMachine):
    """Two machines that write, read, lose their folders and meet damage: a value that is read is always the right one.

    Machines are restarted at random, since what a process found damaged it remembers.
    """

    @initialize()
    def begin(self) -> None:
        self.folder = TemporaryDirectory()
        self.store = MemoryStore()
        self.written: dict[int, bytes] = {}
        self.machines = [self.new(0), self.new(1)]

    def new(self, which: int) -> TieredCache:
        return machine(Path(self.folder.name, str(which)), self.store)

    @rule(which=st.integers(0, 1), number=st.integers(0, 5))
    def write(self, which: int, number: int) -> None:
        self.written[number] = put_tensor(self.machines[which], key(number), FLOAT32, (number + 1, 9), number).tobytes()

    @rule(which=st.integers(0, 1), number=st.integers(0, 5))
    def read(self, which: int, number: int) -> None:
        cache = self.machines[which]
        hit = key(number) in cache.lookup([key(number)], on_damage=lambda error: None)
        assert number in self.written or not hit
        try:
            found = read_whole(cache, key(number)).tobytes()
        except CorruptEntry as error:
            cache.discard(error.key)
            assert cache.lookup([key(number)]) == {}
        else:
            assert found == self.written[number] == raw_bytes(FLOAT32, (number + 1, 9), number).tobytes()

    @rule(which=st.integers(0, 1))
    def restart(self, which: int) -> None:
        self.machines[which] = self.new(which)

    @rule(which=st.integers(0, 1), number=st.integers(0, 5))
    def lose_locally(self, which: int, number: int) -> None:
        Cache(self.machines[which].root).discard(key(number))

    @precondition(lambda self: objects(self.store))
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        content = objects(self.store)
        name = data.draw(st.sampled_from(sorted(content)))
        other = data.draw(st.sampled_from(sorted(content)))
        damage = data.draw(st.sampled_from(["flip", "cut", "remove", "swap"]))
        if damage == "remove":
            obstore.delete(self.store, name)
        elif damage == "swap":
            spoil(self.store, name, content[other])
        else:
            old = content[name]
            spoil(self.store, name, old[:-1] if damage == "cut" else bytes([old[0] ^ 1]) + old[1:])

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()


TestMachines = Machines.TestCase
TestMachines.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
