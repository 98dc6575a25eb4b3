"""Where the values of a block come from, and where those that are kept go.

file of an input ──┐                        ┌── arena of the thread
cache ─────────────┴── read ── slot ── store┤                         back ── slot
arena, if retained ┘                        └── scratch file
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from mergeflow.dtypes import DType
from mergeflow.execute.buffers import Workspace, memory, torch_dtype
from mergeflow.execute.inputs import ReadInput
from mergeflow.execute.kept import KeptValues
from mergeflow.execute.sweep import Step


class Blocks:
    """Brings and keeps values of one program, block by block.

    Args:
        read: reads an input from its file, or from the cache.
    """

    def __init__(self, workspace: Workspace, kept: KeptValues[torch.Tensor], read: ReadInput) -> None:
        self._workspace = workspace
        self._kept = kept
        self._read_input = read

    def read(self, step: Step, dtype: torch.dtype, start: int, elements: int, *, loaded: bool) -> torch.Tensor:
        """A block (elements,) of an input, on the device: read, or retained since an earlier pass `loaded` it."""
        kept = self._kept.view(step.number, start * dtype.itemsize, elements * dtype.itemsize)
        if kept is not None:
            if not loaded:
                self._read_input(step.number, start, memory(kept))
            return self._on_device(kept, step.slot, dtype)
        return self._fill(step, dtype, elements, lambda out: self._read_input(step.number, start, out))

    def read_back(self, step: Step, dtype: torch.dtype, start: int, elements: int) -> torch.Tensor:
        """A block (elements,) of a value that an earlier pass stored, on the device."""
        first = start * dtype.itemsize
        kept = self._kept.view(step.number, first, elements * dtype.itemsize)
        if kept is not None:
            return self._on_device(kept, step.slot, dtype)
        return self._fill(step, dtype, elements, lambda out: self._kept.read(step.number, first, out))

    def gather(self, step: Step, dtype: DType, runs: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Several runs (start, length) of an input or a stored value as one block, on the device."""

        def read(out: memoryview) -> None:
            done = 0
            for start, length in runs:
                part = out[done : done + length * dtype.itemsize]
                if step.kind == "read":
                    self._read_input(step.number, start, part)
                else:
                    self._back(step.number, start * dtype.itemsize, part)
                done += len(part)

        return self._fill(step, torch_dtype(dtype.name), sum(length for _, length in runs), read)

    def store(self, instruction: int, start: int, block: torch.Tensor) -> None:
        """Keeps a block (n,) of a value for later passes."""
        first, nbytes = start * block.dtype.itemsize, block.numel() * block.dtype.itemsize
        kept = self._kept.view(instruction, first, nbytes)
        if kept is not None:
            kept.view(block.dtype).copy_(block)
        else:
            self._kept.write(instruction, first, memory(self.on_host(block)))

    def on_host(self, block: torch.Tensor) -> torch.Tensor:
        """The block (n,) itself on a CPU, else a copy that is valid until the next."""
        if block.device.type == "cpu":
            return block
        nbytes = block.numel() * block.dtype.itemsize
        return self._workspace.raw("out", nbytes).view(block.dtype).copy_(block)

    def _back(self, instruction: int, first: int, out: memoryview) -> None:
        kept = self._kept.view(instruction, first, len(out))
        if kept is None:
            self._kept.read(instruction, first, out)
        else:
            out[:] = memory(kept)

    def _fill(self, step: Step, dtype: torch.dtype, elements: int, read: Callable[[memoryview], None]) -> torch.Tensor:
        """A block brought from a file into the step's buffer."""
        if self._workspace.device.type == "cpu":
            slot = self._workspace.slot(step.slot, elements, dtype)
            read(memory(slot))
            return slot
        host = self._workspace.raw("in", elements * dtype.itemsize)
        read(memory(host))
        return self._on_device(host, step.slot, dtype)

    def _on_device(self, host: torch.Tensor, slot: int, dtype: torch.dtype) -> torch.Tensor:
        block = host.view(dtype)
        if self._workspace.device.type == "cpu":
            return block
        return self._workspace.slot(slot, block.numel(), dtype).copy_(block)
