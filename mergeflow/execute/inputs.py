"""Reading the inputs of a program: tensors of files and of the cache, by flat ranges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from mergeflow.graph.program import Program, Reading
from mergeflow.methods.ops import OPS
from mergeflow.methods.views.protocols import View, view_kernel
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
        self._views: dict[int, View] = {}

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
        if instruction.reading is not None:
            if i not in self._views:
                self._views[i] = self._open(instruction.reading)
            self._views[i].read(start, out)
            return
        if i not in self._readers:
            self._readers[i] = self._cached(instruction.key)
        self._readers[i].read_into(start, out)
        self.cache_bytes_read += len(out)

    def _open(self, reading: Reading) -> View:
        """A view, or a part of one, ready to be read."""
        if reading.source is not None:
            return _InFile(self._files, reading.source)
        if not reading.op:
            return _InCache(self, self._cached(reading.key))
        parts = [_Part(self._open(part), part.dtype.name, part.shape) for part in reading.parts]
        return view_kernel(OPS[reading.op])(parts, reading.parameters, reading.dtype.name, reading.shape)


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a view, as the view's kernel sees it."""

    view: View
    dtype: str
    shape: tuple[int, ...]

    def read(self, start: int, out: memoryview) -> None:
        self.view.read(start, out)


@dataclass(frozen=True, slots=True)
class _InFile:
    """A tensor of a file, as a part of a view."""

    files: InputBytes
    source: TensorSource

    def read(self, start: int, out: memoryview) -> None:
        self.files.read(self.source, start * self.source.dtype.itemsize, out)


@dataclass(frozen=True, slots=True)
class _InCache:
    """A tensor of the cache, as a part of a view."""

    inputs: Inputs
    tensor: CachedTensor

    def read(self, start: int, out: memoryview) -> None:
        self.tensor.read_into(start, out)
        self.inputs.cache_bytes_read += len(out)
