"""Values kept between the passes of one program: in the thread's arena, or in a scratch file without a name.

A scratch file lives in the run's scratch folder and is unlinked as soon as it is open, so that nothing is left behind
whatever happens.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

from mergeflow.errors import RunError
from mergeflow.execute.files import read_all, writing
from mergeflow.execute.writeback import write_all
from mergeflow.graph.memory import Keep, Storage

if TYPE_CHECKING:
    import torch

# Bytes in memory, in the form that an evaluation has its blocks in.
Arena = TypeVar("Arena", "torch.Tensor", memoryview)


class KeptValues(Generic[Arena]):
    """The kept values of one program. A context manager: the scratch file ends with it."""

    def __init__(self, storage: Storage, arena: Arena, scratch_folder: str) -> None:
        self._keeps: Mapping[int, Keep] = {keep.instruction: keep for keep in storage.keeps}
        self._arena: Arena = arena
        self._folder = scratch_folder
        self._file = -1
        if storage.file_bytes:
            with writing(scratch_folder):
                self._file = _unnamed_file(scratch_folder)

    def __enter__(self) -> KeptValues[Arena]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def view(self, instruction: int, start: int, nbytes: int) -> Arena | None:
        """Arena bytes [start, start + nbytes) of a value that is kept in memory; None when it is not."""
        keep = self._keeps.get(instruction)
        if keep is None or keep.home != "memory":
            return None
        return self._arena[keep.offset + start : keep.offset + start + nbytes]

    def write(self, instruction: int, start: int, block: memoryview) -> None:
        """Put a block of a value into the scratch file."""
        with writing(self._folder):
            write_all(self._file, block, self._keeps[instruction].offset + start)

    def read(self, instruction: int, start: int, out: memoryview) -> None:
        """Get a block of a value back from the scratch file."""
        if read_all(self._file, self._keeps[instruction].offset + start, out) < len(out):
            raise RunError(f"a scratch file in {self._folder} became shorter while it was used")


def _unnamed_file(folder: str) -> int:
    descriptor, path = tempfile.mkstemp(dir=folder, prefix="scratch-")
    os.unlink(path)
    return descriptor
