"""Looking after a cache: what is in it, how much room it takes, whether it is whole, and emptying it.

`entries` and `usage` look at everything; `index.survey` remembers what it has seen. `verify` reads everything: what
others check as they read it (seals, sizes, the CRC of each chunk), it checks of entries that nobody has read for long.

Emptying is the one command that deletes much, so it touches only what is provably ours: the folder must carry our tag,
and only names that entries have go. Links are removed, never followed. Others may read and write meanwhile: they meet
misses, and work in progress is left to its owner.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from mergeflow.cache.document import TensorDocument
from mergeflow.cache.entry import EntryInfo, OnDamage, intact, read_document
from mergeflow.cache.folders import Folders, checked_key
from mergeflow.cache.index import ListedKind, Total
from mergeflow.cache.store import Cache, log_damage
from mergeflow.errors import CacheError, CorruptEntry

# Setting a time takes a system call, on a network disk a message: an entry's is not set again for so long.
FRESH_SECONDS = 600.0


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


def usage_of(totals: Mapping[ListedKind, Total]) -> Usage:
    """Sums of an index as counts and bytes per kind."""
    record, tensor = totals["record"], totals["tensor"]
    return Usage(record.count, record.nbytes, tensor.count, tensor.nbytes, totals["damaged"].count)


def touch(cache: Cache, keys: Iterable[str], now: float | None = None) -> None:
    """Says of those of `keys` that are there that they are in use, so that they are not the first to go.

    Args:
        now: seconds since 1970; the clock's when it is None.
    """
    moment = time.time() if now is None else now
    folders = cache.folders
    groups: dict[str, set[str]] = defaultdict(set)
    for key in keys:
        groups[checked_key(key)[:2]].add(key)
    for prefix, group in groups.items():
        for key in group.intersection(folders.names(prefix)):
            with contextlib.suppress(OSError):  # gone meanwhile, or a cache that we may only read
                if not moment - FRESH_SECONDS < os.stat(folders.entry(key)).st_mtime <= moment:
                    os.utime(folders.entry(key))


def verify(cache: Cache, keys: Iterable[str], on_bytes: Callable[[int], None]) -> Iterator[CorruptEntry]:
    """Reads every byte of entries, and tells of those that are damaged. Changes nothing, not even their times.

    Args:
        keys: what is not there counts as whole.
        on_bytes: told how many more bytes of an entry were read.

    Raises:
        OSError: the disk failed in a way that is not this one entry's.
    """
    for key in keys:
        try:
            on_bytes(_verified(cache.folders, key))
        except CorruptEntry as error:
            yield error


def _verified(folders: Folders, key: str) -> int:
    """The bytes of an entry, all of which were read; CorruptEntry when one is not what was written."""
    folder = folders.entry(key)
    found = read_document(folder, key)
    if found is None:
        return 0
    document, nbytes, _ = found
    if not isinstance(document, TensorDocument):
        _ = document.record  # decodes it
        return nbytes

    from mergeflow.cache.tensors import TensorReader

    layout = document.layout
    with TensorReader(key, document, folder) as reader:
        buffer = memoryview(bytearray(min(layout.chunk_bytes, layout.nbytes)))
        position = 0
        while position < layout.nbytes:  # a chunk at a time, so that each is read once
            length = layout.place(position).left
            reader.read_into(position // layout.itemsize, buffer[:length])
            position += length
    return nbytes + layout.file_bytes


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
