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
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

from mergeflow.execute.files import read_all
from mergeflow.output.layout import PlacedTensor, Shard

SAMPLE_BYTES = 4096


def sample_digest(path: Path, shard: Shard) -> str:
    """blake3, in hexadecimal, of the samples of the shard's tensors in the order of their bytes.

    Raises:
        OSError: the file cannot be read, or ends before its tensors do.
    """
    hasher = blake3()
    buffer = memoryview(bytearray(SAMPLE_BYTES))
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Reading ahead, as for a file read in order, would fetch 30 times what is looked at.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        for offset, nbytes in _pieces(shard):
            if read_all(descriptor, offset, buffer[:nbytes]) < nbytes:
                raise OSError(errno.EIO, f"ends before byte {offset + nbytes}", str(path))
            hasher.update(buffer[:nbytes])
    finally:
        os.close(descriptor)
    return hasher.hexdigest()


def _pieces(shard: Shard) -> Iterator[tuple[int, int]]:
    """(offset in the file, number of bytes) of what is looked at, in rising order of tensors."""
    for placed in shard.tensors:
        yield from _pieces_of(placed)


def _pieces_of(placed: PlacedTensor) -> Iterator[tuple[int, int]]:
    nbytes = placed.tensor.nbytes
    for start in (0, nbytes // 2):
        yield placed.offset + start, min(SAMPLE_BYTES, nbytes - start)
