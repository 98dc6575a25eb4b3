"""How an input was made, when mergeflow made it: what its own lock says, if that lock still belongs to its weights.

Somebody may have put other weights beside a lock since. So a lock is believed when every shard it states has the size,
the header and the sample of bytes that it states (`output.sample`), and every tensor that is read lies in one of
them. Times do not count: the same bytes give the same lineage wherever they were copied to.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from mergeflow.errors import CheckpointError, OutputError
from mergeflow.models.records import Checkpoint
from mergeflow.output.lineage import Lineage, bounded
from mergeflow.output.lock import LOCK_FILE, Lock, lineage_of, read_lock
from mergeflow.output.sample import sample_digest
from mergeflow.workflow.delta_file import is_delta_file, lock_in_file

_LOG = logging.getLogger(__name__)


def lineage_of_input(checkpoint: Checkpoint) -> Lineage | None:
    """How an input was made; None when nothing that can be believed says so. A lock that cannot be is warned of."""
    if checkpoint.folder is None:
        return None
    try:
        lock = _lock(checkpoint.folder)
        if lock is None:
            return None
        fault = _fault(lock, checkpoint)
    except (OutputError, CheckpointError, OSError) as error:
        fault = f"{error}"
        lock = None
    found = None if fault is not None or lock is None else bounded(lineage_of(lock))
    if found is None:
        _LOG.warning("%s: %s; how it was made is left out of the lock", checkpoint.label, fault or "its recipe is huge")
    return found


def _lock(folder: Path) -> Lock | None:
    if folder.is_dir():
        return read_lock(folder)
    return lock_in_file(folder) if is_delta_file(folder) else None


def _fault(lock: Lock, checkpoint: Checkpoint) -> str | None:
    """Why a lock does not belong to the weights that are read."""
    assert checkpoint.folder is not None  # it has a lock
    folder = checkpoint.folder if checkpoint.folder.is_dir() else checkpoint.folder.parent
    sources = (source for tensor in checkpoint.tensors.values() for source in tensor.sources())
    read = {Path(segment.file.path) for source in sources for segment in source.segments}
    own = {path.name for path in read if path.parent == Path(os.path.abspath(folder))}
    strange = sorted(own - {shard.file for shard in lock.shards})
    if strange:
        return f"{LOCK_FILE} does not name {strange[0]}"
    if checkpoint.folder.is_file():
        return None  # the lock stands in the header that was just read
    for shard in lock.shards:
        path = folder / shard.file
        if not path.is_file() or path.stat().st_size != shard.size:
            return f"{shard.file} is not the file that {LOCK_FILE} states"
        with path.open("rb") as stream:
            same_header = stream.read(len(shard.header)) == shard.header
        if not same_header or sample_digest(path, shard) != lock.samples.get(shard.file):
            return f"{shard.file} is not the file that {LOCK_FILE} states"
    return None
