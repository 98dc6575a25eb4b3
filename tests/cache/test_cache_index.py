"""The index of a cache: it says what a look at everything says, whatever happens to the cache or to the index."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cache_values import files, key, put_tensor
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

import mergeflow
from mergeflow.cache import index as index_module
from mergeflow.cache.care import clear
from mergeflow.cache.folders import Folders, latest_doubtless_time
from mergeflow.cache.index import Listed, index_file, survey, totals_of
from mergeflow.cache.store import Cache
from mergeflow.dtypes import FLOAT32

numbers = st.integers(0, 5).map(lambda number: number * 128)  # in two folders


def later(_: Folders) -> float:
    """A clock by which everything that was written has settled."""
    return time.time() + 3600


def everything(cache: Cache) -> list[Listed]:
    """What a look at every entry finds."""
    return survey(cache.folders, None).entries()


def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the entries that are opened from now on."""
    seen: list[str] = []
    examine = index_module.examine

    def watched(folder: str, key: str) -> object:
        seen.append(key)
        return examine(folder, key)

    monkeypatch.setattr(index_module, "examine", watched)
    return seen


class RandomCare(RuleBasedStateMachine):
    """Entries come, go, are replaced, read and broken, in this process and in another; clocks are honest or not."""

    folder: Path

    def __init__(self) -> None:
        super().__init__()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.cache = Cache(self.folder / "cache")
        self.index = self.folder / "index.sqlite"
        self.folder.mkdir()
        self.other = Cache(self.folder / "cache", chunk_bytes=16)

    @rule(number=numbers)
    def record(self, number: int) -> None:
        self.cache.write_record(key(number), {"x": number}, {"op": "gram"})

    @rule(number=numbers, length=st.integers(0, 9))
    def tensor(self, number: int, length: int) -> None:
        put_tensor(self.other, key(number + 10_000 * 256), FLOAT32, (length,))

    @rule(number=numbers)
    def discard(self, number: int) -> None:
        self.other.discard(key(number))

    @rule(number=numbers, op=st.sampled_from(["a", "b"]))
    def replace(self, number: int, op: str) -> None:
        """The folder may well get the inode of the one before."""
        self.cache.discard(key(number))
        self.cache.write_record(key(number), {"x": number}, {"op": op})

    @rule(number=numbers)
    def read(self, number: int) -> None:
        if self.cache.lookup([key(number)]):
            self.cache.read_record(key(number))

    @rule(number=numbers)
    def truncate(self, number: int) -> None:
        """Damage that the folder's times do not show, and then one that they do."""
        if self.cache.lookup([key(number)]):
            shutil.rmtree(self.cache.folders.entry(key(number)))
            os.makedirs(self.cache.folders.entry(key(number)))
            Path(self.cache.folders.entry(key(number)), "zarr.json").write_text("{}")

    @rule()
    def clear(self) -> None:
        clear(self.other)

    @rule(content=st.sampled_from([b"", b"no database", None]))
    def break_the_index(self, content: bytes | None) -> None:
        self.index.unlink(missing_ok=True)
        if content is not None:
            self.index.write_bytes(content)

    @rule(wrong=st.sampled_from([-3600.0, 3600.0]))
    def look_by_a_wrong_clock(self, wrong: float) -> None:
        """This machine's clock is ahead of the disk's, or behind it."""
        found = survey(self.cache.folders, self.index, lambda it: latest_doubtless_time(it, time.time() + wrong))
        assert found.entries() == everything(self.cache)

    @invariant()
    def index_equals_everything(self) -> None:
        found = survey(self.cache.folders, self.index)
        assert found.entries() == everything(self.cache)
        assert found.totals() == totals_of(everything(self.cache))


def test_the_index_says_what_a_look_at_everything_says(tmp_path: Path) -> None:
    """After any operations, breakages of the index and settings of the clock."""
    RandomCare.folder = tmp_path / "machine"
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        RandomCare,
        settings=settings(max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=checks),
    )


def test_what_is_known_is_not_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second look opens nothing; after a new entry only that one is opened."""
    cache, index = Cache(tmp_path / "cache"), tmp_path / "index.sqlite"
    for number in range(20):
        cache.write_record(key(number), {}, {"op": "gram"})
    first = survey(cache.folders, index, later).entries()
    seen = opened(monkeypatch)
    assert survey(cache.folders, index, later).entries() == first
    assert seen == []
    cache.write_record(key(3 + 256), {}, {"op": "kth_magnitude"})
    survey(cache.folders, index, later)
    assert seen == [key(3 + 256)]


def test_what_has_not_settled_is_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries younger than a tick of the clock, or from the future by a clock set back, are opened each time."""
    cache, index = Cache(tmp_path / "cache"), tmp_path / "index.sqlite"
    cache.write_record(key(1), {}, {"op": "gram"})
    written = os.stat(files(cache, key(1))[0]).st_mtime
    seen = opened(monkeypatch)
    for now in (written - 1.0, written + 0.001):
        survey(cache.folders, index, lambda _, now=now: now)  # type: ignore[misc]
    assert seen == [key(1), key(1)]


def test_a_read_entry_is_no_changed_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading sets the time of last use, and the index stays as it was."""
    cache, index = Cache(tmp_path / "cache"), tmp_path / "index.sqlite"
    cache.write_record(key(1), {}, {"op": "gram"})
    survey(cache.folders, index, later)
    cache.read_record(key(1))
    seen = opened(monkeypatch)
    survey(cache.folders, index, later)
    assert seen == []


def test_a_damaged_row_is_a_missing_one(tmp_path: Path) -> None:
    """A byte flipped inside the index file's rows never becomes a wrong answer."""
    cache, index = Cache(tmp_path / "cache"), tmp_path / "index.sqlite"
    for number in (1, 2):
        cache.write_record(key(number), {"x": number}, {"op": "gram"})
    expected = survey(cache.folders, index, later).entries()
    for column, value in (("entries", b"\0" * 81), ("stamp", "1:2:3:4:5"), ("details", "{}"), ("proof", None)):
        with sqlite3.connect(index) as database:
            database.execute(f"UPDATE entries_2 SET {column} = ? WHERE prefix = '01'", (value,))
        database.close()
        assert survey(cache.folders, index, later).entries() == expected


def test_an_index_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    """A folder in its place, or a file in the place of its folder, costs time and nothing else."""
    cache = Cache(tmp_path / "cache")
    cache.write_record(key(1), {}, {"op": "gram"})
    (tmp_path / "index.sqlite").mkdir()
    (tmp_path / "file").write_text("mine")
    for index in (tmp_path / "index.sqlite", tmp_path / "file" / "index.sqlite"):
        assert [entry.key for entry in survey(cache.folders, index).entries()] == [key(1)]
    assert (tmp_path / "file").read_text() == "mine"


def test_damaged_entries_are_listed_as_such(tmp_path: Path) -> None:
    """An entry that no run can use is listed, with no bytes."""
    cache = Cache(tmp_path)
    cache.write_record(key(1), {}, {"op": "gram"})
    os.truncate(files(cache, key(1))[0], 3)
    assert everything(cache) == [Listed(key(1), "damaged", 0, "?")]


def test_each_cache_has_its_own_index(tmp_path: Path) -> None:
    """The same folder by any path has one index, another folder another."""
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "a").mkdir()
    assert index_file(tmp_path, tmp_path / "a") == index_file(tmp_path, tmp_path / "link")
    assert index_file(tmp_path, tmp_path / "a") != index_file(tmp_path, tmp_path / "b")


WRITE_AND_LOOK = """
import sys
from pathlib import Path
from cache_values import key
from mergeflow.cache.index import survey
from mergeflow.cache.store import Cache
cache, index, mine = Cache(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3])
for turn in range(20):
    cache.write_record(key(mine + turn * 3), {"x": turn}, {"op": "gram"})
    if turn % 3 == 0:
        cache.discard(key(turn))
    survey(cache.folders, index)
"""


def test_several_processes_share_an_index(tmp_path: Path) -> None:
    """While three processes write, remove and look, the index is right, and so it is afterwards."""
    cache, index = Cache(tmp_path / "cache"), tmp_path / "index.sqlite"
    paths = os.pathsep.join([str(Path(mergeflow.__file__).parents[1]), str(Path(__file__).parent)])
    running = [
        subprocess.Popen(
            [sys.executable, "-c", WRITE_AND_LOOK, str(cache.root), str(index), str(mine)],
            env={**os.environ, "PYTHONPATH": paths},
        )
        for mine in range(3)
    ]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert survey(cache.folders, index).entries() == everything(cache)
    assert survey(cache.folders, index, later).entries() == everything(cache)
