"""The size limit: the longest unused goes first, what is needed never, and nobody's mishap costs anybody an entry."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from cache_values import files, key, put_tensor, raw_bytes, read_whole, work_in_progress
from hypothesis import given, settings
from hypothesis import strategies as st

import mergeflow
from mergeflow.cache import limit as limit_module
from mergeflow.cache.care import touch, usage, verify
from mergeflow.cache.collecting import Unwanted, collect
from mergeflow.cache.index import BLOCK, survey
from mergeflow.cache.leases import leasing
from mergeflow.cache.limit import Disk, Removed, default_limit, evict, lock, room
from mergeflow.cache.pins import Pin, write_pin
from mergeflow.cache.store import Cache
from mergeflow.dtypes import FLOAT32
from mergeflow.errors import CorruptEntry

RECORD = 2 * BLOCK  # what a small record takes: a block for its file, one for its folder
GB = 10**9


def filled(folder: Path, ages: list[int]) -> Cache:
    """A cache with a record for each number, last used so many seconds ago."""
    cache = Cache(folder)
    for number, age in enumerate(ages):
        cache.write_record(key(number), {"x": number}, {"op": "gram"})
        used(cache, number, age)
    return cache


def used(cache: Cache, number: int, age: float) -> None:
    """Says of an entry that it was last used so many seconds before some moment."""
    os.utime(cache.folders.entry(key(number)), (1e9 - age, 1e9 - age))


def numbers_in(cache: Cache) -> set[int]:
    return {int(entry.key[2:], 16) for entry in survey(cache.folders, None).entries()}


def size(cache: Cache) -> int:
    return survey(cache.folders, None).taken


def test_the_longest_unused_goes_first(tmp_path: Path) -> None:
    """Entries are removed by last use, no more than the limit asks for, and the others stay readable."""
    cache = filled(tmp_path, [50, 10, 40, 20, 30])
    removed = evict(cache, 3 * RECORD)
    assert (removed.count, removed.nbytes, removed.left) == (2, 2 * RECORD, 3 * RECORD)
    assert removed.keys == {key(0), key(2)}
    assert numbers_in(cache) == {1, 3, 4}
    assert cache.read_record(key(4)) == {"x": 4}
    assert evict(cache, 3 * RECORD) == Removed(left=3 * RECORD, limit=3 * RECORD)


def test_what_was_read_was_used(tmp_path: Path) -> None:
    """Reading a record, opening a tensor and `touch` make an entry the last to go."""
    cache = filled(tmp_path, [50, 40, 30, 20])
    put_tensor(cache, key(9), FLOAT32, (3,))
    used(cache, 9, 60)
    cache.read_record(key(0))
    read_whole(cache, key(9))
    touch(cache, [key(1), key(77)])
    evict(cache, size(cache) - 2 * RECORD)
    assert numbers_in(cache) == {0, 1, 9}


def test_a_time_is_not_set_again_so_soon(tmp_path: Path) -> None:
    """`touch` leaves an entry alone that was used minutes ago, and corrects a time from the future."""
    cache = filled(tmp_path, [60, -60])
    before = os.stat(cache.folders.entry(key(0))).st_mtime
    touch(cache, [key(0), key(1)], now=1e9)
    assert os.stat(cache.folders.entry(key(0))).st_mtime == before
    assert os.stat(cache.folders.entry(key(1))).st_mtime != 1e9 + 60


def test_damaged_entries_go_before_all_others(tmp_path: Path) -> None:
    """An entry that no run can use is worth nothing, however recently it was used."""
    cache = filled(tmp_path, [50, 10])
    os.truncate(files(cache, key(1))[0], 3)
    evict(cache, RECORD)
    assert numbers_in(cache) == {0}


@settings(max_examples=25, deadline=None)
@given(
    ages=st.lists(st.integers(0, 5), max_size=8),
    leased=st.sets(st.integers(0, 9), max_size=4),
    pinned=st.sets(st.integers(0, 9), max_size=4),
    most=st.integers(0, 9),
    coming=st.integers(0, 2),
)
def test_needed_entries_stay_and_the_limit_is_kept(
    tmp_path_factory: pytest.TempPathFactory,
    ages: list[int],
    leased: set[int],
    pinned: set[int],
    most: int,
    coming: int,
) -> None:
    """Whatever is leased and pinned stays; the rest is within the limit, or nothing else is left; order is that of use."""
    cache = filled(tmp_path_factory.mktemp("cache"), ages)
    with ExitStack() as stack:
        stack.enter_context(leasing(cache.folders, [key(number) for number in leased]))
        if pinned:
            write_pin(cache.folders, Pin("all", frozenset(key(number) for number in pinned)))
        before = numbers_in(cache)
        said = room(cache, most * RECORD)
        removed = evict(cache, most * RECORD, coming=coming * RECORD)
        after = numbers_in(cache)
    needed = before & (leased | pinned)
    assert needed <= after
    assert removed.left == size(cache) == len(after) * RECORD
    assert len(after) + coming <= most or after == needed
    assert len(removed.keys) == max(0, min(len(before) + coming - most, len(before - needed)))
    assert said == max(0, most - len(needed)) * RECORD
    gone, stayed = before - after, after - needed
    assert max((-ages[number] for number in gone), default=-9) <= min((-ages[number] for number in stayed), default=0)


def test_what_is_used_while_others_go_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry that is read, leased or pinned after the list was made is passed over."""
    cache = filled(tmp_path, [50, 40, 30, 20, 10])
    ask = limit_module.by_last_use

    def meanwhile(*arguments: object) -> object:
        found = ask(*arguments)  # type: ignore[arg-type]
        cache.read_record(key(0))
        write_pin(cache.folders, Pin("new", frozenset({key(1)})))
        stack.enter_context(leasing(cache.folders, [key(2)]))
        return found

    monkeypatch.setattr(limit_module, "by_last_use", meanwhile)
    with ExitStack() as stack:
        evict(cache, 0)
        assert numbers_in(cache) == {0, 1, 2}


def test_in_doubt_nothing_goes(tmp_path: Path) -> None:
    """While a pin or lease cannot be read, no limit removes anything, there is no room, and the file is named."""
    cache = filled(tmp_path, [50, 40])
    write_pin(cache.folders, Pin("one", frozenset({key(0)})))
    Path(cache.folders.pins, "one.json").write_text("{")
    assert room(cache, RECORD) == 0
    removed = evict(cache, 0)
    assert (removed.count, removed.doubts) == (0, (f"{cache.folders.pins}/one.json",))
    assert numbers_in(cache) == {0, 1}


def test_clocks_going_backwards_cost_at_most_the_order(tmp_path: Path) -> None:
    """Entries used in the future, or before 1970, are entries like others: needed ones stay, the limit holds."""
    cache = filled(tmp_path, [10, -(10**9), 2 * 10**9, 5])
    with leasing(cache.folders, [key(2)]):
        evict(cache, 2 * RECORD)
        assert numbers_in(cache) == {1, 2}


def test_an_unused_cache_stays_unmade(tmp_path: Path) -> None:
    """Looking for room, and evicting, make no folder."""
    cache = Cache(tmp_path / "new")
    assert room(cache, 10**6) == 10**6
    assert evict(cache, 0) == Removed()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("disk", "used", "expected"),
    [
        (Disk(1000 * GB, 900 * GB), 0, 250 * GB),  # a quarter
        (Disk(1000 * GB, 200 * GB), 0, 100 * GB),  # what leaves a tenth free
        (Disk(1000 * GB, 150 * GB), 100 * GB, 150 * GB),  # the cache's own bytes count as free
        (Disk(1000 * GB, 50 * GB), 100 * GB, 50 * GB),  # the disk is too full: the cache shrinks
        (Disk(1000 * GB, 50 * GB), 0, 1 << 30),  # but may always take a little
        (Disk(1000 * GB, GB), 0, GB // 2),
        (Disk(0, 0), 0, 0),
    ],
)
def test_the_share_of_the_disk(disk: Disk, used: int, expected: int) -> None:
    """A quarter, less when under a tenth would stay free, and a little in any case."""
    assert default_limit(disk, used) == expected


def test_room_is_bounded_by_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However large the limit, no more can be kept than the disk has; what may go counts as free."""
    cache = filled(tmp_path, [10, 20])
    monkeypatch.setattr(limit_module, "disk_of", lambda _: Disk(10 * GB, 1000))
    assert room(cache, GB) == 2 * RECORD + 900
    assert room(cache, GB, reserved=500) == 2 * RECORD + 400
    with leasing(cache.folders, [key(0), key(1)]):
        assert room(cache, GB) == 900


def test_a_full_disk_makes_room_for_what_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk cannot hold what is about to be written, entries go although the limit is far away."""
    cache = filled(tmp_path, [30, 20, 10])
    monkeypatch.setattr(limit_module, "disk_of", lambda _: Disk(10 * GB, 0))
    evict(cache, GB, coming=RECORD + 1)
    assert numbers_in(cache) == {2}


def test_only_one_evicts_at_a_time(tmp_path: Path) -> None:
    """While another process holds the lock there is nothing to do; without locks everybody may."""
    cache = filled(tmp_path, [30, 20])
    with lock(cache.folders) as first, lock(cache.folders) as second:
        assert (first, second) == (True, False)
        assert evict(cache, 0).count == 0

    def unsupported(_handle: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with lock(cache.folders, unsupported) as mine:
        assert mine
    assert evict(cache, 0).count == 2


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    """Nothing is made where a stranger's link points."""
    cache = filled(tmp_path / "cache", [1])
    Path(cache.folders.lock).symlink_to(tmp_path / "target")
    evict(cache, 0)
    assert not (tmp_path / "target").exists()


PRELUDE = """
import os, sys
from pathlib import Path
from cache_values import key
from mergeflow.cache.limit import evict
from mergeflow.cache.store import Cache
cache = Cache(Path(sys.argv[1]))
"""

# Dies in the middle of an entry: after it was renamed away, before it is deleted.
DIE = """
import signal
from mergeflow.cache import folders
count = 0
def dying(path, delete=folders.delete):
    global count
    count += 1
    if count == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    delete(path)
folders.delete = dying
evict(cache, 0)
"""

EVICT_MUCH = """
for turn in range(15):
    evict(cache, 8 * 4096)
"""


def process(program: str, folder: Path) -> subprocess.Popen[bytes]:
    paths = os.pathsep.join([str(Path(mergeflow.__file__).parents[1]), str(Path(__file__).parent)])
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + program, str(folder)], env={**os.environ, "PYTHONPATH": paths}
    )


def test_killed_while_evicting(tmp_path: Path) -> None:
    """What is left is whole; the rubbish is swept; the next one goes on, and no lock stands in its way."""
    cache = filled(tmp_path, [60, 50, 40, 30])
    put_tensor(cache, key(7), FLOAT32, (5, 3))
    running = process(DIE, tmp_path)
    assert running.wait() == -signal.SIGKILL
    left = numbers_in(cache)
    assert 0 < len(left) < 5
    assert usage(cache).damaged == 0
    assert work_in_progress(cache) != []
    cache.sweep()
    assert work_in_progress(cache) == []
    assert evict(cache, 0).count == len(left)


def test_several_evict_while_others_read_and_write(tmp_path: Path) -> None:
    """Values are right or missing, never wrong; what is leased is there all the time; the limit holds at the end."""
    cache = filled(tmp_path, [1])
    with leasing(cache.folders, [key(1000), key(0)]):
        values = put_tensor(cache, key(1000), FLOAT32, (20, 3))
        running = [process(EVICT_MUCH, tmp_path) for _ in range(2)]
        choice = random.Random(0)
        while any(one.poll() is None for one in running):
            number = choice.randrange(1001, 1020)
            put_tensor(cache, key(number), FLOAT32, (20, 3), seed=number)
            assert np.array_equal(read_whole(cache, key(1000)), values)
            assert cache.read_record(key(0)) == {"x": 0}
            try:
                found = read_whole(cache, key(choice.randrange(1001, number + 1)))
            except CorruptEntry:
                continue
            assert found.size == raw_bytes(FLOAT32, (20, 3)).size
        assert [one.returncode for one in running] == [0, 0]
    assert usage(cache).damaged == 0
    evict(cache, 8 * BLOCK)
    assert size(cache) <= 8 * BLOCK


def test_a_cache_deleted_while_evicting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries that are gone already are no mishap."""
    cache = filled(tmp_path, [30, 20, 10])
    ask = limit_module.by_last_use

    def meanwhile(*arguments: object) -> object:
        found = ask(*arguments)  # type: ignore[arg-type]
        shutil.rmtree(cache.folders.base)
        return found

    monkeypatch.setattr(limit_module, "by_last_use", meanwhile)
    assert evict(cache, 0).count == 0


class TestCollecting:
    def test_nothing_is_unwanted_unless_somebody_says_so(self, tmp_path: Path) -> None:
        """Without rules only damage, leftovers and what is over the limit go."""
        cache = filled(tmp_path, [50, 40, 30])
        os.truncate(files(cache, key(2))[0], 3)
        (Path(cache.folders.works) / "gone").mkdir()
        os.utime(Path(cache.folders.works) / "gone", (1e9, 1e9))
        done = collect(cache, RECORD, None, Unwanted())
        assert (done.leftovers, done.damaged.count, done.unwanted.count, done.over.count) == (1, 1, 0, 1)
        assert (done.left, done.limit) == (RECORD, RECORD)
        assert numbers_in(cache) == {1}
        assert work_in_progress(cache) == []

    def test_old_entries_and_those_of_no_recipe(self, tmp_path: Path) -> None:
        """Each rule alone removes what it names; both together only what both name; pins hold against both."""
        rules = {
            Unwanted(unused_since=1e9 - 35): {2, 3, 4},
            Unwanted(unless=frozenset({key(0), key(2)})): {0, 2, 4},
            Unwanted(1e9 - 35, frozenset({key(0), key(2)})): {0, 2, 3, 4},
        }
        for turn, (rule, expected) in enumerate(rules.items()):
            cache = filled(tmp_path / str(turn), [50, 40, 30, 20, 60])
            write_pin(cache.folders, Pin("one", frozenset({key(4)})))
            dry = collect(cache, GB, None, rule, dry_run=True)
            assert numbers_in(cache) == {0, 1, 2, 3, 4}
            done = collect(cache, GB, None, rule)
            assert done == dry
            assert numbers_in(cache) == expected
            assert done.needed == 1

    def test_in_doubt_only_leftovers_go(self, tmp_path: Path) -> None:
        """While a pin cannot be read no entry goes, damaged ones included."""
        cache = filled(tmp_path, [50, 40])
        os.truncate(files(cache, key(1))[0], 3)
        Path(cache.folders.place_file(cache.folders.pins, "one.json", b"{"))
        done = collect(cache, 0, None, Unwanted(unless=frozenset()))
        assert (done.damaged.count, done.unwanted.count, done.over.count) == (0, 0, 0)
        assert len(done.doubts) == 1
        assert numbers_in(cache) == {0, 1}


class TestVerify:
    @pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 7), (2, 40, 3)])
    def test_any_changed_byte_is_found(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        """Of the document and of the chunks, padding, CRCs and index included; and whole entries are whole."""
        cache = Cache(tmp_path, chunk_bytes=48)
        put_tensor(cache, key(1), FLOAT32, shape)
        cache.write_record(key(2), {"x": 1.5}, {"op": "gram"})
        counted: list[int] = []
        keys = [key(1), key(2), key(3)]
        assert list(verify(cache, keys, counted.append)) == []
        assert sum(counted) == sum(path.stat().st_size for number in (1, 2) for path in files(cache, key(number)))
        for number in (1, 2):
            for path in files(cache, key(number)):
                whole = path.read_bytes()
                for at in {0, len(whole) // 3, len(whole) // 2, len(whole) - 1}:
                    path.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
                    assert [error.key for error in verify(cache, keys, lambda _: None)] == [key(number)]
                path.write_bytes(whole)

    def test_verifying_is_no_use(self, tmp_path: Path) -> None:
        """Reading everything does not make it look used."""
        cache = filled(tmp_path, [50])
        put_tensor(cache, key(1), FLOAT32, (5,))
        used(cache, 1, 40)
        assert list(verify(cache, [key(0), key(1)], lambda _: None)) == []
        assert [os.stat(cache.folders.entry(key(number))).st_mtime for number in (0, 1)] == [1e9 - 50, 1e9 - 40]
