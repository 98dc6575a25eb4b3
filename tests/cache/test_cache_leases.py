"""Leases: what a run under way needs is known to everybody, and doubt counts as need."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from cache_values import key

import mergeflow
from mergeflow.cache import leases
from mergeflow.cache.folders import ABANDONED_AFTER_SECONDS, latest_doubtless_time
from mergeflow.cache.leases import Lease, abandoned_leases, leasing, names_of_leases, read_lease
from mergeflow.cache.protection import Protection
from mergeflow.cache.store import Cache

ELSEWHERE = "0123456789abcdef-1.1-00"


def written(cache: Cache, keys: list[str]) -> Path:
    """The file of a lease that this process holds until the test ends."""
    cache.write_record(key(999), {}, {})
    return Path(cache.folders.place_file(cache.folders.leases, leases.owned_name(), leases._text(keys)))


def test_a_lease_lasts_as_long_as_its_block(tmp_path: Path) -> None:
    """Inside the block the keys are known to be needed; after it, by error or not, there is no lease."""
    cache = Cache(tmp_path)
    with leasing(cache.folders, [key(1), key(2)]):
        assert Protection(cache.folders).keys == {key(1), key(2)}
        assert Protection(cache.folders, leases=False).keys == frozenset()
    with pytest.raises(KeyError), leasing(cache.folders, [key(1)]):
        raise KeyError
    assert names_of_leases(cache.folders) == frozenset()


def test_no_keys_need_no_lease(tmp_path: Path) -> None:
    """A run that needs nothing of the cache makes no folder."""
    with leasing(Cache(tmp_path / "new").folders, []):
        assert not (tmp_path / "new").exists()


def test_a_lease_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    """A cache folder that is a file, or that belongs to somebody else: the block runs all the same."""
    (tmp_path / "file").write_text("mine")
    ran = []
    with leasing(Cache(tmp_path / "file").folders, [key(1)]):
        ran.append(1)
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "thesis.tex").write_text("mine")
    with leasing(Cache(tmp_path).folders, [key(1)]):
        ran.append(2)
    assert ran == [1, 2]
    assert os.listdir(tmp_path / "v1") == ["thesis.tex"]


def test_a_lease_is_refreshed(tmp_path: Path) -> None:
    """While the block runs the file's time is set anew, so that other machines see that its owner lives."""
    cache = Cache(tmp_path)
    with leasing(cache.folders, [key(1)], every=0.01):
        [name] = names_of_leases(cache.folders)
        path = Path(cache.folders.leases, name)
        os.utime(path, (1e9, 1e9))
        ended = time.monotonic() + 20
        while path.stat().st_mtime == 1e9:
            assert time.monotonic() < ended
            time.sleep(0.005)
    assert all(thread.name != "lease" for thread in threading.enumerate())


HOLD = """
import sys
from pathlib import Path
from cache_values import key
from mergeflow.cache.leases import leasing
from mergeflow.cache.store import Cache
with leasing(Cache(Path(sys.argv[1])).folders, [key(1)]):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_the_lease_of_a_killed_process_is_none(tmp_path: Path) -> None:
    """It holds while its owner lives, and after kill -9 it is abandoned at once."""
    cache = Cache(tmp_path)
    paths = os.pathsep.join([str(Path(mergeflow.__file__).parents[1]), str(Path(__file__).parent)])
    running = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
    )
    with running:
        assert running.stdout is not None
        running.stdout.readline()
        assert Protection(cache.folders).keys == {key(1)}
        assert abandoned_leases(cache.folders) == []
        running.kill()
        running.wait()
    assert Protection(cache.folders).keys == frozenset()
    assert len(abandoned_leases(cache.folders)) == 1


@pytest.mark.parametrize(
    ("age", "holds"),
    [(0.0, True), (ABANDONED_AFTER_SECONDS - 60, True), (ABANDONED_AFTER_SECONDS + 60, False), (-1e6, True)],
)
def test_of_another_machine_age_decides(tmp_path: Path, age: float, holds: bool) -> None:
    """A lease not refreshed for a day is none; one whose time lies in the future, by whatever clock, holds."""
    cache = Cache(tmp_path)
    path = written(cache, [key(1)]).rename(Path(cache.folders.leases, ELSEWHERE))
    now = time.time()
    os.utime(path, (now - age, now - age))
    assert (key(1) in Protection(cache.folders, now=now).keys) is holds


def test_the_slower_of_two_clocks_judges(tmp_path: Path) -> None:
    """A clock that was set a year ahead makes no lease old: the disk's own clock is asked too. Nor does one set back."""
    cache = Cache(tmp_path)
    written(cache, [key(1)]).rename(Path(cache.folders.leases, ELSEWHERE))
    year = 365 * 86400.0
    for now in (time.time() + year, time.time() - year):
        assert latest_doubtless_time(cache.folders, now) < time.time() + 60
        assert Protection(cache.folders, now=now).keys == {key(1)}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"mergeflow lease 1 2\n" + key(1).encode() + b"\n",
        b"mergeflow lease 2 0\n",
        b"mergeflow lease 1 1\n../../etc/passwd\n",
        b"\xff\xfe",
    ],
)
def test_a_lease_that_is_not_whole_protects_everything(tmp_path: Path, content: bytes) -> None:
    """Cut short, of another format, with something that is no key: as long as its owner lives, nothing may go."""
    cache = Cache(tmp_path)
    path = written(cache, [key(1)])
    path.write_bytes(content)
    protection = Protection(cache.folders)
    assert protection.doubts == [str(path)]
    assert protection.holds(key(77))


def test_a_lease_that_is_no_file_protects_everything(tmp_path: Path) -> None:
    """A folder, a link or a pipe in its place is neither followed nor waited for."""
    cache = Cache(tmp_path)
    path = written(cache, [key(1)])
    path.unlink()
    for make in (path.mkdir, lambda: path.symlink_to("/etc/hostname"), lambda: os.mkfifo(path)):
        make()
        found = read_lease(cache.folders, path.name, time.time())
        assert found == Lease(path.name, None)
        path.rmdir() if path.is_dir() else path.unlink()


def test_protection_sees_what_came_since(tmp_path: Path) -> None:
    """A lease taken, and one given back, after the list was made both count at the next question."""
    cache = Cache(tmp_path)
    protection = Protection(cache.folders)
    assert not protection.holds(key(1))
    with leasing(cache.folders, [key(1)]):
        assert protection.holds(key(1))
        assert not protection.holds(key(2))
    assert not protection.holds(key(1))
