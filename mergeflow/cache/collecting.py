"""Collecting garbage: what is broken, abandoned or unwanted goes, then what was used least, and never what is needed.

In this order, each looking only at what the one before has left:

    leftovers    work and leases of dead processes
    damaged      entries that no run can use
    unwanted     when the caller says what is: entries not used since a time, not among the keys to keep, or both
    over         what was used least, while the cache is above its limit

Leases and pins hold for all but the leftovers.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from mergeflow.cache.folders import delete
from mergeflow.cache.index import Listed, survey, taken
from mergeflow.cache.leases import abandoned_leases
from mergeflow.cache.limit import Candidate, Removed, by_last_use, limit_of, lock, remove
from mergeflow.cache.protection import Protection
from mergeflow.cache.store import Cache

NANOSECONDS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Unwanted:
    """Which entries are unwanted: all for which each rule that is given says so; without any rule, none.

    Args:
        unused_since: seconds since 1970: not used at that time or later.
        unless: keys that are wanted.
    """

    unused_since: float | None = None
    unless: Set[str] | None = None

    def has(self, candidate: Candidate) -> bool:
        """Whether an entry is unwanted."""
        if self.unused_since is None and self.unless is None:
            return False
        is_old = self.unused_since is None or candidate.last_used < self.unused_since * NANOSECONDS
        return is_old and (self.unless is None or candidate.entry.key not in self.unless)


@dataclass(frozen=True, slots=True)
class Collected:
    """What was removed, or would be.

    Args:
        leftovers: pieces of work and leases of dead processes.
        needed: entries that leases and pins protect.
        limit, left: bytes of the disk that the cache may take, and takes now.
        doubts: files that may name any key, so that no entry could be removed.
    """

    leftovers: int
    damaged: Removed
    unwanted: Removed
    over: Removed
    needed: int
    limit: int
    left: int
    doubts: tuple[str, ...]


def collect(
    cache: Cache, limit: int | None, index: Path | None, unwanted: Unwanted, *, dry_run: bool = False
) -> Collected:
    """Removes garbage, or says what would be removed.

    Args:
        limit: the user's size limit in bytes; None for the share of the disk.
        index: the index of the cache (`index.index_file`).

    Raises:
        CacheError: the cache folder cannot be used.
        OSError: the disk failed; what was removed so far is gone, and nothing else.
    """
    folders = cache.folders
    leftovers = [*folders.abandoned_work(), *abandoned_leases(folders)]
    if not dry_run:
        for path in leftovers:
            delete(path)
    entries = survey(folders, index).entries()
    if not entries:
        return Collected(len(leftovers), Removed(), Removed(), Removed(), 0, limit_of(cache, limit, 0), 0, ())
    with lock(folders):  # whoever else removes entries now does no harm
        protection = Protection(folders)
        needed = protection.keys
        candidates = by_last_use(folders, entries, needed)
        damaged, rest = _split(candidates, {it.entry for it in candidates if it.entry.kind == "damaged"})
        old, rest = _split(rest, {it.entry for it in rest if unwanted.has(it)})
        first = remove(folders, damaged, protection, dry_run=dry_run)
        second = remove(folders, old, protection, dry_run=dry_run)
        used = sum(map(taken, entries)) - first.nbytes - second.nbytes
        most = limit_of(cache, limit, used)
        third = remove(folders, rest, protection, enough=max(0, used - most), dry_run=dry_run)
    protected = sum(1 for entry in entries if entry.key in needed)
    left = used - third.nbytes
    return Collected(len(leftovers), first, second, third, protected, most, left, tuple(protection.doubts))


def _split(candidates: list[Candidate], chosen: Set[Listed]) -> tuple[list[Candidate], list[Candidate]]:
    """Those that are chosen, and the others, each in their order."""
    return [it for it in candidates if it.entry in chosen], [it for it in candidates if it.entry not in chosen]
