"""Looking after a cache: what is in it, how much room it takes, and emptying it.

Emptying is the one command that deletes much, so it touches only what is provably ours: the folder must carry our tag,
and only names that entries have go. Links are removed, never followed. Others may read and write meanwhile: they meet
misses, and work in progress is left to its owner.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from mergeflow.cache.entry import EntryInfo, OnDamage, intact
from mergeflow.cache.store import Cache, log_damage
from mergeflow.errors import CacheError, CorruptEntry


@dataclass(frozen=True, slots=True)
class Usage:
    """How many entries there are, and their bytes. Damaged entries are counted, their bytes are not."""

    records: int = 0
    record_bytes: int = 0
    tensors: int = 0
    tensor_bytes: int = 0
    damaged: int = 0

    @property
    def entries(self) -> int:
        return self.records + self.tensors

    @property
    def nbytes(self) -> int:
        return self.record_bytes + self.tensor_bytes


def entries(cache: Cache, on_damage: OnDamage = log_damage) -> Iterator[EntryInfo]:
    """Every intact entry, by rising key. `on_damage` is told of the others; what is no entry at all is passed over."""
    folders = cache.folders
    for prefix in folders.prefixes():
        yield from intact(folders, folders.keys(prefix), on_damage)


def usage(cache: Cache) -> Usage:
    """Counts and bytes per kind."""
    damaged: list[CorruptEntry] = []
    counts = {"record": 0, "tensor": 0}
    nbytes = {"record": 0, "tensor": 0}
    for info in entries(cache, damaged.append):
        counts[info.kind] += 1
        nbytes[info.kind] += info.nbytes
    return Usage(counts["record"], nbytes["record"], counts["tensor"], nbytes["tensor"], len(damaged))


def clear(cache: Cache) -> Usage:
    """Removes every entry and all abandoned work, and returns what there was.

    Raises:
        CacheError: the folder holds something, but is not a mergeflow cache; nothing was touched.
    """
    folders = cache.folders
    if not os.path.lexists(folders.base):
        return Usage()
    if not folders.is_ours():
        raise CacheError(f"{folders.base} is not a mergeflow cache (it has no tag of ours); nothing was removed")
    removed = usage(cache)
    for prefix in folders.prefixes():
        folders.discard(f"{folders.base}/{prefix}")
    folders.sweep()
    return removed
