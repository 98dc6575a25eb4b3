"""A place for results that writes nothing: it compares them with what the output's files hold.

It takes the place of `execute.files.OutputFiles`, so what is compared is what a run would write, block by block, by
the same evaluation on the same device; no more than one block is in memory twice.
"""

from __future__ import annotations

import os
from types import TracebackType

import numpy as np

from mergeflow.errors import RunError
from mergeflow.execute.files import read_all


class ComparedFiles:
    """The files one task compares its results with. A context manager."""

    def __init__(self) -> None:
        self._open: dict[str, int] = {}
        self._different: dict[str, list[int]] = {}
        self._buffer = bytearray()

    def __enter__(self) -> ComparedFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def write(self, path: str, offset: int, block: memoryview) -> None:
        """Compare a block of bytes with the file's from an absolute offset on, and note the first that differs.

        Raises:
            RunError: the file cannot be read.
        """
        expected = block.cast("B")
        if len(self._buffer) < len(expected):
            self._buffer = bytearray(len(expected))
        found = memoryview(self._buffer)[: len(expected)]
        try:
            if path not in self._open:
                self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            count = read_all(self._open[path], offset, found)
        except OSError as error:
            raise RunError(f"cannot read {path}: {error.strerror or error}") from error
        unequal = np.frombuffer(found[:count], np.uint8) != np.frombuffer(expected[:count], np.uint8)
        if unequal.any():
            self._different.setdefault(path, []).append(offset + int(unequal.argmax()))
        elif count < len(expected):
            self._different.setdefault(path, []).append(offset + count)

    def first_difference(self, path: str, offset: int, nbytes: int) -> int | None:
        """How many bytes of a tensor (`nbytes` from `offset` on) are equal before the first that is not."""
        inside = [at - offset for at in self._different.get(path, ()) if offset <= at < offset + nbytes]
        return min(inside, default=None)
