"""Reading the inputs of a program: tensors of files and of the cache, by flat ranges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from mergeflow.graph.program import Program
from mergeflow.models.records import TensorSource

# Reads bytes of an input instruction, from an element on.
ReadInput = Callable[[int, int, memoryview], None]


class InputBytes(Protocol):
    """The bytes of input tensors: of files (`files.InputFiles`), or of tensors in memory."""

    bytes_read: int

    def read(self, source: TensorSource, start: int, out: memoryview) -> None: ...

    def will_read(self, source: TensorSource) -> None: ...

    def plain(self, source: TensorSource) -> tuple[int, int] | None: ...


class CachedTensor(Protocol):
    """A tensor of the cache, read by flat ranges."""

    def read_into(self, start: int, out: memoryview) -> None: ...


class Inputs:
    """The inputs of one program.

    Args:
        cached: opens a tensor of the cache by key.
    """

    def __init__(self, program: Program, files: InputBytes, cached: Callable[[str], CachedTensor]) -> None:
        self.cache_bytes_read = 0
        self._program = program
        self._files = files
        self._cached = cached
        self._readers: dict[int, CachedTensor] = {}

    @property
    def bytes_read(self) -> int:
        """Bytes read from files so far."""
        return self._files.bytes_read

    def read(self, i: int, start: int, out: memoryview) -> None:
        """Bytes of an input instruction from element `start` on."""
        instruction = self._program.instructions[i]
        if instruction.source is not None:
            self._files.read(instruction.source, start * instruction.source.dtype.itemsize, out)
            return
        if i not in self._readers:
            self._readers[i] = self._cached(instruction.key)
        self._readers[i].read_into(start, out)
        self.cache_bytes_read += len(out)
