"""Leases: what a run that is under way needs is not removed, by no process on no machine.

    <root>/v1/.leases/<machine>-<process>-<x>       mergeflow lease 1 <number of keys>
                                                    <key>
                                                    ...

A run writes one before it looks into the cache, naming every key it may need or write, so that what the look finds
stays there until the run has ended. It is a file put there by one rename, named as work in .tmp is (see `folders`): on
this machine the lease of a dead process is no lease; of another machine's nothing is known but the file's time, which
a living run sets anew each minute.

**Never on doubt.** Whoever removes entries reads the leases first, and again whenever there is another. A lease that
cannot be read, or is not whole, may name any key, so nothing is removed while its owner may live. Clocks of machines
differ and may be set back. So an owner elsewhere counts as dead only when its lease is a day old by this machine's
clock and by that of the disk the cache lies on; a lease from the future is alive.

A run that cannot write its lease (a cache it may only read, a full disk) goes without: an entry that is taken away
under it is a miss, and it computes the value itself.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from mergeflow.cache.folders import Folders, delete, is_abandoned, is_key, latest_doubtless_time, owned_name
from mergeflow.errors import CacheError

REFRESH_SECONDS = 60.0
# 65 bytes a key: more than a million of them are not believed.
MOST_BYTES = 1 << 26

_HEAD = "mergeflow lease 1"


@dataclass(frozen=True, slots=True)
class Lease:
    """What one run needs. `keys` is None when that cannot be read: it may be anything."""

    name: str
    keys: frozenset[str] | None


@contextlib.contextmanager
def leasing(folders: Folders, keys: Collection[str], every: float = REFRESH_SECONDS) -> Iterator[None]:
    """Nobody removes the entries of these keys while the block runs.

    Args:
        every: seconds after which the lease's time is set anew.
    """
    try:
        path = folders.place_file(folders.leases, owned_name(), _text(keys)) if keys else None
    except (OSError, CacheError):
        path = None
    if path is None:
        yield
        return
    ended = threading.Event()
    refresher = threading.Thread(target=_refresh, args=(path, ended, every), name="lease", daemon=True)
    refresher.start()
    try:
        yield
    finally:
        ended.set()
        refresher.join()
        delete(path)


def names_of_leases(folders: Folders) -> frozenset[str]:
    """The names of all leases, of living runs or not."""
    try:
        return frozenset(os.listdir(folders.leases))
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()


def read_lease(folders: Folders, name: str, now: float) -> Lease | None:
    """A lease of a run that is under way, or may be; None when its owner is dead or it has just ended."""
    path = f"{folders.leases}/{name}"
    if is_abandoned(path, now):
        return None
    try:
        # Not through links: nothing of ours is one, and a FIFO behind it would never end.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(handle, "rb") as file:
            text = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError:
        return Lease(name, None)
    return Lease(name, _keys(text))


def abandoned_leases(folders: Folders) -> list[str]:
    """The files of leases whose owners are dead."""
    paths = [f"{folders.leases}/{name}" for name in sorted(names_of_leases(folders))]
    now = latest_doubtless_time(folders) if paths else 0.0
    return [path for path in paths if is_abandoned(path, now)]


def _text(keys: Collection[str]) -> bytes:
    return "\n".join([f"{_HEAD} {len(keys)}", *keys, ""]).encode("ascii")


def _keys(text: bytes) -> frozenset[str] | None:
    """The keys of a lease; None when it is not as it was written."""
    try:
        head, *lines = text.decode("ascii").splitlines()
    except ValueError:
        return None
    if head != f"{_HEAD} {len(lines)}" or not all(map(is_key, lines)):
        return None
    return frozenset(lines)


def _refresh(path: str, ended: threading.Event, every: float) -> None:
    while not ended.wait(every):
        with contextlib.suppress(OSError):
            os.utime(path)
