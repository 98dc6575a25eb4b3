"""A few bytes of every tensor of a shard, hashed: enough to tell it from another shard with the same header.

Two outputs of one architecture have shards of equal names, sizes and headers, so that a shard moved or copied from one
to the other looks like the one it replaces, its times included. The tensors of another model differ from their first
bytes on, so the first 4096 bytes of each tensor and 4096 from its middle on tell (a tensor of up to 8 KiB is covered
whole). That is two small reads per tensor whatever its size: milliseconds, where a digest of all bytes takes as long as
writing them. What a sample cannot see is an edit of other bytes of a tensor; `target` has the file's time for that.

A sample depends on the shard's bytes alone, so it may stand in the lock: same recipe and inputs, same sample.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from mergeflow.output.layout import Shard

SAMPLE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class PatchedTensors:
    """Tensors whose bytes do not lie in the shard yet, but in a patch file: at which offset, by name."""

    file: Path
    offsets: Mapping[str, int]


def sample_digest(path: Path, shard: Shard, patched: PatchedTensors | None = None) -> str:
    """blake3, in hexadecimal, of the samples of the shard's tensors in the order of their bytes.

    With `patched`, of the shard as it will be.

    Raises:
        OSError: the file cannot be read, or ends before its tensors do.
    """
    hasher = blake3()
    with ExitStack() as stack:
        shard_file = _open(path, stack)
        patch_file = -1 if patched is None else _open(patched.file, stack)
        offsets = {} if patched is None else patched.offsets
        for placed in shard.tensors:
            nbytes = placed.tensor.nbytes
            if placed.tensor.name in offsets:
                _sample(hasher, patch_file, offsets[placed.tensor.name], nbytes, path)
            else:
                _sample(hasher, shard_file, placed.offset, nbytes, path)
    return hasher.hexdigest()


def _open(path: Path, stack: ExitStack) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, descriptor)
    # Reading ahead, as for a file read in order, would fetch 30 times what is looked at.
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    return descriptor


def _sample(hasher: blake3, descriptor: int, offset: int, nbytes: int, path: Path) -> None:
    """Add what is looked at of a tensor that lies at `offset`."""
    for start in (0, nbytes // 2):
        count = min(SAMPLE_BYTES, nbytes - start)
        content = os.pread(descriptor, count, offset + start)
        if len(content) < count:
            raise OSError(errno.EIO, f"ends before byte {offset + start + count}", str(path))
        hasher.update(content)
