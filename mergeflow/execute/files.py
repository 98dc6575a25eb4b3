"""Reading inputs and writing outputs: whole runs of bytes, into and out of buffers that exist already.

A file is read only while it is the file that was planned with: its identity is checked when it is opened and again
when a task is done with it, so a merge of two versions of one input cannot happen unnoticed.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

from mergeflow.errors import RunError
from mergeflow.execute.writeback import NUDGE_BYTES, start_writeback, write_all
from mergeflow.models.records import FileIdentity, Segment, TensorSource


class InputFiles:
    """The input files one task has open. A context manager: leaving it checks and closes them all."""

    def __init__(self) -> None:
        self._open: dict[FileIdentity, int] = {}
        self.bytes_read = 0

    def __enter__(self) -> InputFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                for identity, descriptor in self._open.items():
                    _check_identity(identity, descriptor)
        finally:
            for descriptor in self._open.values():
                os.close(descriptor)
            self._open.clear()

    def read(self, source: TensorSource, start: int, out: memoryview) -> None:
        """Fill `out` with bytes of a tensor, from byte `start` of it on."""
        self.bytes_read += len(out)
        filled = 0
        for segment, skip, length in _pieces(source.segments, start, len(out)):
            self._read_piece(segment.file, segment.offset + skip, out[filled : filled + length])
            filled += length

    def plain(self, source: TensorSource) -> tuple[int, int] | None:
        """The open file and offset of a tensor that lies in one piece, for others to read; None when it does not."""
        if len(source.segments) != 1:
            return None
        (segment,) = source.segments
        return self._descriptor(segment.file), segment.offset

    def will_read(self, source: TensorSource) -> None:
        """Tell the kernel that a tensor is read soon, so that a cold file is on its way when it is needed."""
        for segment in source.segments:
            descriptor = self._descriptor(segment.file)
            os.posix_fadvise(descriptor, segment.offset, segment.nbytes, os.POSIX_FADV_WILLNEED)

    def _read_piece(self, file: FileIdentity, offset: int, out: memoryview) -> None:
        try:
            count = read_all(self._descriptor(file), offset, out)
        except OSError as error:
            raise RunError(f"cannot read {file.path}: {error.strerror or error}") from error
        if count < len(out):
            raise became_shorter(file)

    def _descriptor(self, file: FileIdentity) -> int:
        if file not in self._open:
            try:
                descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise RunError(f"cannot read {file.path}: {error.strerror}") from error
            self._open[file] = descriptor
            _check_identity(file, descriptor)
        return self._open[file]


def became_shorter(file: FileIdentity) -> RunError:
    """For a file that ended before what its header says it holds."""
    return RunError(f"{file.path} became shorter while it was read")


def _check_identity(identity: FileIdentity, descriptor: int) -> None:
    now = os.fstat(descriptor)
    on_path = _stat_or_none(identity.path)
    if (now.st_size, now.st_mtime_ns, now.st_ino) != (identity.size, identity.mtime_ns, identity.inode) or (
        on_path is not None and on_path.st_ino != identity.inode
    ):
        raise RunError(f"{identity.path} was replaced or changed while it was being merged; nothing was published")


def _stat_or_none(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None  # deleted after it was opened: what is open is still the file that was planned with


def _pieces(segments: Sequence[Segment], start: int, length: int) -> Iterator[tuple[Segment, int, int]]:
    """(segment, bytes to skip in it, bytes to read) that together are `length` bytes from byte `start` on."""
    for segment in segments:
        if start >= segment.nbytes:
            start -= segment.nbytes
            continue
        if length == 0:
            return
        count = min(segment.nbytes - start, length)
        yield segment, start, count
        length -= count
        start = 0


class Turns:
    """A lock per shard file of this process: one writer at a time.

    Two threads that write one file at once are two to four times slower than one (measured), so one is let through
    while the others compute.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}

    def of(self, path: str) -> threading.Lock:
        with self._guard:
            return self._locks.setdefault(path, threading.Lock())


class OutputFiles:
    """The shard files one task writes. A context manager: a later task opens them anew.

    Descriptors are not kept from task to task: a shard is renamed when it is complete, and a file of an earlier run
    must not be written to any more.
    """

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._open: dict[str, int] = {}
        self._written: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> OutputFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def write(self, path: str, offset: int, block: memoryview) -> None:
        """Write a block of bytes at an absolute offset of an existing file.

        Raises:
            RunError: the disk is full or fails.
        """
        with writing(path):
            if path not in self._open:
                self._open[path] = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            with self._turns.of(path):
                write_all(self._open[path], block, offset)
            self._nudge(path, offset, offset + len(block))

    def _nudge(self, path: str, start: int, end: int) -> None:
        """Have the kernel begin writing what this task has put into the file, a large run at a time."""
        begun, reached = self._written.get(path, (start, start))
        if start != reached:
            begun = start  # a tensor elsewhere in the file: what came before is synced with the shard
        if end - begun >= NUDGE_BYTES:
            start_writeback(self._open[path], begun, end - begun)
            begun = end
        self._written[path] = (begun, end)


def read_all(descriptor: int, offset: int, out: memoryview) -> int:
    """Fill `out` with a file's bytes from `offset` on; returns how many there were. One call may bring only some."""
    done = 0
    while done < len(out) and (count := os.preadv(descriptor, [out[done:]], offset + done)):
        done += count
    return done


@contextmanager
def writing(path: str) -> Iterator[None]:
    """Turn a failed write into a RunError that says what the user can do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise RunError(f"the disk is full: cannot write {path}; free some space and run again") from error
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
