"""Operations on whole tensors: their inputs are brought together, their result is kept for the passes that follow.

These are the only values that are in memory whole, and in fresh memory; the plan states how much.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from mergeflow.errors import RunError
from mergeflow.execute.buffers import Workspace, memory, torch_dtype
from mergeflow.execute.inputs import ReadInput
from mergeflow.execute.kept import KeptValues
from mergeflow.graph.program import READ, Program
from mergeflow.methods.kernels.protocols import Record, whole_kernel
from mergeflow.methods.ops import OPS


class WholeValues:
    """Computes the ``whole`` instructions of one program.

    Args:
        read: reads an input from its file, or from the cache.
    """

    def __init__(self, program: Program, workspace: Workspace, kept: KeptValues[torch.Tensor], read: ReadInput) -> None:
        self._program = program
        self._workspace = workspace
        self._kept = kept
        self._read_input = read

    def compute(self, i: int, records: Mapping[int, Record]) -> None:
        """Computes instruction `i`, whose inputs are on disk or kept, and keeps it.

        Raises:
            RunError: the kernel gave a tensor of another shape.
        """
        if self._program.size == 0:
            return
        instruction = self._program.instructions[i]
        assert instruction.dtype is not None  # an operation on whole tensors gives a tensor
        dtype = torch_dtype(instruction.dtype.name)
        tensors = [
            self._gather(j, dtype) for j in instruction.inputs if self._program.instructions[j].dtype is not None
        ]
        known = [records[j] for j in instruction.inputs if j in records]
        result = whole_kernel(OPS[instruction.op])(tensors, known, instruction.parameters)
        if result.shape != self._program.shape:
            shapes = f"{list(result.shape)} for inputs of {list(self._program.shape)}"
            raise RunError(f"{instruction.op} gave a tensor of shape {shapes}")
        self._keep(i, result.to(device="cpu", dtype=dtype).reshape(-1))

    def _gather(self, i: int, dtype: torch.dtype) -> torch.Tensor:
        """The whole of an input or a kept value in its shape, widened to `dtype`, on the device; not to be modified."""
        instruction = self._program.instructions[i]
        assert instruction.dtype is not None  # the caller asks for tensors
        own = torch_dtype(instruction.dtype.name)
        is_input = instruction.kind in READ
        kept = None if is_input else self._kept.view(i, 0, self._program.size * own.itemsize)
        flat = self._read(i, own, dtype, is_input=is_input) if kept is None else kept.view(own).to(dtype)
        return flat.reshape(self._program.shape).to(self._workspace.device)

    def _read(self, i: int, own: torch.dtype, dtype: torch.dtype, *, is_input: bool) -> torch.Tensor:
        size, most = self._program.size, self._workspace.block_elements
        flat = torch.empty(size, dtype=dtype)
        for start in range(0, size, most):
            part = flat[start : start + most]
            host = part if own == dtype else self._workspace.raw("in", part.numel() * own.itemsize).view(own)
            if is_input:
                self._read_input(i, start, memory(host))
            else:
                self._kept.read(i, start * own.itemsize, memory(host))
            if own != dtype:
                part.copy_(host)
        return flat

    def _keep(self, i: int, flat: torch.Tensor) -> None:
        kept = self._kept.view(i, 0, flat.numel() * flat.dtype.itemsize)
        if kept is not None:
            kept.view(flat.dtype).copy_(flat)
            return
        most = self._workspace.block_elements
        for start in range(0, flat.numel(), most):
            self._kept.write(i, start * flat.dtype.itemsize, memory(flat[start : start + most]))
