"""The size limit: what was used least goes first, and never what is needed.

**What counts** is what entries take on the disk: their files in whole blocks, and a block for the folder.

**The limit** is what the user says, else a share of the disk: a quarter of it, less when that would leave under a tenth
of it free. On a disk that is nearly full the cache may still take up to 1 GiB, but no more than half of what is left.

**Evicting** removes entries by last use, the longest unused first, until the rest is within the limit. Last use is the
time of the entry's folder, which readers set, and runs for every entry of their recipe. Damaged entries go before all
others. Before each single removal the leases and pins are looked at once more, and so is the entry's time: what
somebody began to need or use since the list was made stays. When everything left is needed, the cache stays above its
limit.

Several may evict at once, from any machine: they remove the same entries in the same order, and an entry that is gone
is gone. A lock (where the file system has one) only keeps them from doing the same work twice. A process killed while
it evicts leaves rubbish in .tmp at most.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

from mergeflow.cache.folders import Folders
from mergeflow.cache.index import Listed, survey, taken
from mergeflow.cache.protection import Protection
from mergeflow.cache.store import Cache
from mergeflow.errors import CacheError

SHARE_OF_DISK = 1 / 4
LEFT_FREE = 1 / 10
SMALL = 1 << 30


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes of the file system that a cache lies on."""

    total: int
    free: int


@dataclass(frozen=True, slots=True)
class Removed:
    """What was removed, and what is left.

    Args:
        count, nbytes: entries removed, and the disk space they took.
        left: disk space that the entries now take.
        last_used: of each removed key when it was last used, in nanoseconds since 1970.
        doubts: files that may name any key, so that nothing could be removed.
        limit: what was kept to, in bytes.
    """

    count: int = 0
    nbytes: int = 0
    left: int = 0
    last_used: Mapping[str, int] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()
    limit: int = 0

    @property
    def keys(self) -> Set[str]:
        """The removed keys."""
        return self.last_used.keys()


def disk_of(folders: Folders) -> Disk:
    """The disk a cache lies on, or would lie on. CacheError when that cannot be told."""
    place = Path(os.path.abspath(folders.base))
    try:
        found = shutil.disk_usage(next(path for path in (place, *place.parents) if path.is_dir()))
    except (OSError, StopIteration) as error:
        raise CacheError(f"{folders.root}: cannot tell how large its disk is: {error}") from error
    return Disk(found.total, found.free)


def default_limit(disk: Disk, used: int) -> int:
    """The limit when the user names none, for a cache that takes `used` bytes of `disk`."""
    share = min(int(disk.total * SHARE_OF_DISK), used + disk.free - int(disk.total * LEFT_FREE))
    return max(share, min(SMALL, (used + disk.free) // 2))


def limit_of(cache: Cache, limit: int | None, used: int) -> int:
    """The limit in bytes that holds for a cache which takes `used` bytes; `limit` is the user's, if any."""
    return default_limit(disk_of(cache.folders), used) if limit is None else limit


def room(cache: Cache, limit: int | None, index: Path | None = None, *, reserved: int = 0) -> int:
    """Bytes that may still be kept: under the limit when all goes that nobody needs, and on the disk.

    Args:
        reserved: bytes of the disk that somebody else is about to take. A tenth of what is free stays free besides.
        limit: the user's limit in bytes; None for the share of the disk.
        index: the index of the cache (`index.index_file`).
    """
    contents = survey(cache.folders, index)
    used = contents.taken
    protection = Protection(cache.folders)
    keys = protection.keys
    evictable = 0 if protection.doubts else used - contents.taken_by(keys)
    below = limit_of(cache, limit, used) - (used - evictable)
    free = int(disk_of(cache.folders).free * (1 - LEFT_FREE)) - reserved
    return max(0, min(below, free + evictable))


def evict(cache: Cache, limit: int | None, index: Path | None = None, *, coming: int = 0) -> Removed:
    """Removes what was used least until the entries, and `coming` bytes more, are within the limit.

    Args:
        limit: the user's limit in bytes; None for the share of the disk.
        index: the index of the cache (`index.index_file`).
        coming: bytes that are about to be written, which the disk must hold too.

    Raises:
        OSError: the disk failed; what was removed so far is gone, and nothing else.
    """
    folders = cache.folders
    contents = survey(folders, index)
    used = contents.taken
    if used == 0:
        return Removed()
    most = limit_of(cache, limit, used)
    excess = used + coming - most
    if coming:
        excess = max(excess, coming - disk_of(folders).free)
    if excess <= 0:
        return Removed(left=used, limit=most)
    with lock(folders) as is_ours:
        if not is_ours:  # another process is at it
            return Removed(left=used, limit=most)
        protection = Protection(folders)
        done = remove(folders, by_last_use(folders, contents.entries(), protection.keys), protection, enough=excess)
    return replace(done, left=used - done.nbytes, limit=most)


@dataclass(frozen=True, slots=True)
class Candidate:
    """An entry that may go, and when it was last used, as nanoseconds since 1970."""

    entry: Listed
    last_used: int


def by_last_use(folders: Folders, entries: Iterable[Listed], needed: Collection[str]) -> list[Candidate]:
    """The entries nobody needs, damaged ones first, then the longest unused."""
    found: list[Candidate] = []
    for prefix, group in groupby((it for it in entries if it.key not in needed), lambda it: it.key[:2]):
        try:
            folder = os.open(f"{folders.base}/{prefix}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:  # gone, or not ours to look at
            continue
        try:
            for entry in group:
                with contextlib.suppress(OSError):
                    found.append(Candidate(entry, os.stat(entry.key, dir_fd=folder).st_mtime_ns))
        finally:
            os.close(folder)
    return sorted(found, key=lambda it: (it.entry.kind != "damaged", it.last_used, it.entry.key))


def remove(
    folders: Folders,
    candidates: Iterable[Candidate],
    protection: Protection,
    *,
    enough: int | None = None,
    dry_run: bool = False,
) -> Removed:
    """Removes candidates in their order, but for what is needed or was used meanwhile.

    Args:
        enough: stop when so many bytes are removed; None to remove all.
        dry_run: remove nothing, and say what would be.
    """
    removed: dict[str, int] = {}
    nbytes = 0

    def leaving() -> Iterator[str]:
        nonlocal nbytes
        for candidate in candidates:
            if enough is not None and nbytes >= enough:
                return
            entry = candidate.entry
            if last_used_ns(folders, entry.key) == candidate.last_used and not protection.holds(entry.key):
                removed[entry.key] = candidate.last_used
                nbytes += taken(entry)
                yield folders.entry(entry.key)

    if dry_run:
        deque(leaving(), maxlen=0)
    else:
        folders.discard_all(leaving())
    return Removed(len(removed), nbytes, last_used=removed, doubts=tuple(protection.doubts))


def last_used_ns(folders: Folders, key: str) -> int | None:
    """When an entry was last used, in nanoseconds since 1970; None when it is not there."""
    try:
        return os.stat(folders.entry(key)).st_mtime_ns
    except OSError:
        return None


@contextlib.contextmanager
def lock(folders: Folders, flock: Callable[[int, int], None] = fcntl.flock) -> Iterator[bool]:
    """Whether this process may evict now: False while another one does. True where there are no locks.

    The kernel lets go of the lock when its owner dies.
    """
    try:
        handle = os.open(folders.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError:
        yield True  # we may not write here, which removing will say
        return
    try:
        try:
            flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = True
        except BlockingIOError:
            is_ours = False
        except OSError:  # a file system without locks
            is_ours = True
        yield is_ours
    finally:
        os.close(handle)
