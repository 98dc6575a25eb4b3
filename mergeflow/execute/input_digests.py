"""Programs that were planned before their inputs had digests: hashed here, by the task that reads them.

The first run over new models would read each of them twice: for the digests that every key begins with, and to merge.
Where no key is needed to plan (nothing of the output is there yet), a task hashes its own inputs instead, right before
it evaluates: the second reading is from the page cache however large the models are, and while one thread hashes
another one writes. Then the keys follow, and what the cache turns out to have is read from there after all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from mergeflow.cache.store import Cache
from mergeflow.execute.records import InputDigests
from mergeflow.graph.late_keys import computed, lacks_keys, with_keys, with_known
from mergeflow.graph.program import Program
from mergeflow.graph.tasks import Known
from mergeflow.models.hashing import BLOCK_BYTES, hash_batch
from mergeflow.models.records import FileIdentity, TensorSource


def keyed(program: Program, store: Cache | None, moved: Callable[[int, int], None]) -> tuple[Program, InputDigests]:
    """What is left of a program when its inputs are hashed and the cache was asked; it is as it was if it has keys.

    Raises:
        RunError: an input was replaced, or cannot be read.
    """
    if not lacks_keys(program):
        return program, InputDigests()
    missing = {source: None for it in program.instructions if not it.key for source in it.sources()}
    digests: dict[TensorSource, str] = {}
    loud: set[FileIdentity] = set()
    buffer = memoryview(bytearray(BLOCK_BYTES))
    for source in missing:
        found, quiet = hash_batch([source], buffer, threading.Event())
        digests.update(found)
        loud |= {segment.file for segment in source.segments} - quiet
        moved(source.nbytes, 0)
    files = {segment.file for source in missing for segment in source.segments}
    program = with_keys(program, digests)
    known = _look_up(program, store)
    return with_known(program, known), InputDigests(digests, frozenset(files - loud), (*known.tensors, *known.records))


def _look_up(program: Program, store: Cache | None) -> Known:
    """What of a program's values is in the cache."""
    found = store.lookup(computed(program)) if store is not None else {}
    records = [key for key, entry in found.items() if entry.kind == "record"]
    tensors = frozenset(key for key, entry in found.items() if entry.kind == "tensor")
    return Known(tensors, store is None, {key: store.read_record(key) for key in records if store is not None})
