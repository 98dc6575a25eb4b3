"""The digest of a tensor's contents: what names it in every key, on every machine.

    blake3("mergeflow/tensor/1" NUL dtype NUL shape NUL bytes)     dtype: its name; shape: decimal, joined by commas

Names, offsets and file boundaries are left out: the same values in another file, or an expert's matrices read through
a packed view, have the same digest as the tensor saved that way. The prefix is unambiguous (none of its parts can hold
a NUL), and its number is bumped when any of this changes.

Files are read by `preadv` into buffers that are used again and again: fresh memory costs more than hashing here, and
mmap pays for it too (docs/performance.md).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack

from blake3 import blake3

from mergeflow.errors import RunError
from mergeflow.models.identity import unchanged
from mergeflow.models.records import FileIdentity, TensorSource

# One read: it stays in the processor's second cache until it is hashed (a megabyte takes a tenth longer).
BLOCK_BYTES = 1 << 18
# What one task hashes: large enough to read on in the file, small enough for a smooth progress bar.
BATCH_BYTES = 32 << 20


class Stopped(Exception):
    """The run was interrupted; what this task had begun is dropped."""


def prefix(source: TensorSource) -> bytes:
    """What is hashed before a tensor's bytes."""
    shape = ",".join(str(extent) for extent in source.shape)
    return f"mergeflow/tensor/1\0{source.dtype.name}\0{shape}\0".encode()


def batches(sources: Iterable[TensorSource]) -> Iterator[list[TensorSource]]:
    """The tensors in the order of their bytes, in runs of about `BATCH_BYTES` of one file."""
    batch: list[TensorSource] = []
    size = 0
    for source in sorted(sources, key=_place):
        if batch and (size >= BATCH_BYTES or _place(source)[0] != _place(batch[-1])[0]):
            yield batch
            batch, size = [], 0
        batch.append(source)
        size += source.nbytes
    if batch:
        yield batch


def hash_batch(
    batch: Iterable[TensorSource], buffer: memoryview, stop: threading.Event
) -> tuple[dict[TensorSource, str], frozenset[FileIdentity]]:
    """The digests of some tensors, and their files whose ctime is still the one that was recorded.

    Raises:
        RunError: a file is no longer the one whose header was read, or cannot be read.
        Stopped: `stop` was set.
    """
    sources = list(batch)
    files = dict.fromkeys(segment.file for source in sources for segment in source.segments)
    with ExitStack() as stack:
        descriptors = {file: _opened(file, stack) for file in files}
        digests = {source: _digest(source, descriptors, buffer, stop) for source in sources}
        for file, descriptor in descriptors.items():
            _check(file, descriptor)
        quiet = frozenset(file for file, fd in descriptors.items() if os.fstat(fd).st_ctime_ns == file.ctime_ns)
    return digests, quiet


def _digest(
    source: TensorSource, descriptors: Mapping[FileIdentity, int], buffer: memoryview, stop: threading.Event
) -> str:
    head = prefix(source)
    hasher, hashed = blake3(head), len(head)
    for segment in source.segments:
        position, left = segment.offset, segment.nbytes
        while left:
            if stop.is_set():
                raise Stopped
            # blake3 is a tree over blocks of a power of two: updates that keep to its grid are hashed all at once.
            room = len(buffer) - hashed % len(buffer)
            count = _read(segment.file, descriptors[segment.file], buffer[: min(left, room)], position)
            hasher.update(buffer[:count])
            position, left, hashed = position + count, left - count, hashed + count
    return hasher.hexdigest()


def _read(file: FileIdentity, descriptor: int, into: memoryview, offset: int) -> int:
    try:
        count = os.preadv(descriptor, [into], offset)
    except OSError as error:
        raise RunError(f"{file.path}: cannot be read: {error.strerror}") from error
    if count == 0:
        raise RunError(f"{file.path}: became shorter while reading")
    return count


def _opened(file: FileIdentity, stack: ExitStack) -> int:
    try:
        descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise RunError(f"{file.path}: cannot be read: {error.strerror}") from error
    stack.callback(os.close, descriptor)
    _check(file, descriptor)
    return descriptor


def _check(file: FileIdentity, descriptor: int) -> None:
    if not unchanged(file, descriptor):
        raise RunError(f"{file.path}: was replaced while reading; run again")


def _place(source: TensorSource) -> tuple[str, int]:
    first = source.segments[0]
    return first.file.path, first.offset
