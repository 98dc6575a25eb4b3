"""Ranges of bytes of a file, here or on the hub, for what describes its tensors: never for the tensors."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from mergeflow.errors import CheckpointError
from mergeflow.models.identity import identify
from mergeflow.models.records import FileIdentity


class Ranges(Protocol):
    """A file whose bytes can be asked for."""

    @property
    def file(self) -> FileIdentity: ...

    @property
    def is_near(self) -> bool:
        """Whether a read costs little. Where it does not, what only repeats something known is not read."""

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset` on; fewer where the file ends.

        Raises:
            CheckpointError: they cannot be read.
        """


class LocalRanges:
    """Ranges of an open file of this machine."""

    is_near = True

    def __init__(self, descriptor: int, path: str) -> None:
        self._descriptor = descriptor
        self.file = identify(descriptor, path)

    def read(self, offset: int, count: int) -> bytes:
        """As `Ranges.read`."""
        pieces = []
        while count > 0 and offset < self.file.size:
            try:
                piece = os.pread(self._descriptor, min(count, self.file.size - offset), offset)
            except OSError as error:
                raise CheckpointError(f"{self.file.path}: cannot be read: {error.strerror or error}") from error
            if not piece:
                break
            pieces.append(piece)
            offset, count = offset + len(piece), count - len(piece)
        return b"".join(pieces)


@contextmanager
def open_ranges(path: Path) -> Iterator[LocalRanges]:
    """The ranges of a file on this machine.

    Raises:
        CheckpointError: there is none, it is no plain file, or it may not be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{path}: not a file")
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        yield LocalRanges(descriptor, os.fspath(path))
    finally:
        os.close(descriptor)
