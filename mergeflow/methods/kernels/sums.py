"""Sums over whole tensors, in float64, the same to the last bit however they are computed.

A library's own sum adds in an order that depends on the vector width, the number of threads, the device. Here the
order is ours: an element belongs to the lane (its index modulo LANES); each lane adds its elements in rising order,
which is one elementwise addition per LANES elements; at the end the lanes are folded in halves, and the last few are
added exactly. No step leaves a choice to the machine. A lane of a tensor with 10^9 elements adds 15,000 numbers, so
its relative error stays near 10^-14.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mergeflow.methods.kernels.lanes import LANES, fold, runs
from mergeflow.methods.kernels.protocols import Record, Scratch


class LaneSums:
    """Sums over a tensor of `size` elements, of terms made from float64 copies of the inputs' blocks."""

    def __init__(self, size: int, inputs: int, sums: int, device: torch.device) -> None:
        self._width = min(size, LANES)
        # Lists: taking a row of a tensor costs as much as adding a thousand numbers to it.
        self._totals = list(torch.zeros((sums, self._width), dtype=torch.float64, device=device))
        self._copies = list(torch.empty((inputs, self._width), dtype=torch.float64, device=device))

    def widened(self, blocks: Sequence[Tensor], offset: int, count: int) -> list[Tensor]:
        """The `count` elements from `offset` on of each block, as float64, in buffers that the next call reuses."""
        copies = self._copies if count == self._width else [copy[:count] for copy in self._copies]
        return [copy.copy_(block[offset : offset + count]) for copy, block in zip(copies, blocks, strict=True)]

    def totals(self, lane: int, count: int) -> list[Tensor]:
        """The `count` lanes from `lane` on of each sum, to add to."""
        return self._totals if count == self._width else [total[lane : lane + count] for total in self._totals]

    def folded(self) -> list[float]:
        """The sums."""
        return [fold(total.cpu().numpy().copy()) for total in self._totals]


class MagnitudeSum:
    """sum(|X|) of one tensor: record {"sum": float}."""

    needs_sample = False

    def __init__(self, size: int, parameters: Mapping[str, object]) -> None:
        self.wanted = range(size)
        self._sums: LaneSums | None = None

    def sample(self, blocks: Sequence[Tensor]) -> None:
        """Not needed."""

    def update(self, start: int, blocks: Sequence[Tensor], scratch: Scratch) -> None:
        """Adds one block (n,)."""
        (block,) = blocks
        self._sums = self._sums or LaneSums(len(self.wanted), 1, 1, block.device)
        for offset, lane, count in runs(start, block.numel()):
            (values,) = self._sums.widened(blocks, offset, count)
            (total,) = self._sums.totals(lane, count)
            total += values.abs_()

    def finish(self) -> Record:
        """The record, after one pass."""
        return {"sum": self._sums.folded()[0] if self._sums else 0.0}


class Gram:
    """The dot products X_i . X_j, i <= j, row by row, of k tensors: record {"gram": k (k + 1) / 2 floats}."""

    needs_sample = False

    def __init__(self, size: int, parameters: Mapping[str, object]) -> None:
        self.wanted = range(size)
        self._sums: LaneSums | None = None
        self._inputs = 0

    def sample(self, blocks: Sequence[Tensor]) -> None:
        """Not needed."""

    def update(self, start: int, blocks: Sequence[Tensor], scratch: Scratch) -> None:
        """Adds one block of each tensor, (n,)."""
        inputs = len(blocks)
        if self._sums is None:
            self._sums = LaneSums(len(self.wanted), inputs, inputs * (inputs + 1) // 2, blocks[0].device)
        for offset, lane, count in runs(start, blocks[0].numel()):
            values = self._sums.widened(blocks, offset, count)
            pairs = [(left, right) for i, left in enumerate(values) for right in values[i:]]
            for total, (left, right) in zip(self._sums.totals(lane, count), pairs, strict=True):
                _add_product(total, left, right, exact=blocks[0].dtype == torch.float32)

    def finish(self) -> Record:
        """The record, after one pass."""
        return {"gram": self._sums.folded() if self._sums else []}


def _add_product(total: Tensor, left: Tensor, right: Tensor, exact: bool) -> None:
    """total += left * right, all (n,) float64, the product rounded by itself.

    The product of two float32 numbers is `exact` in float64: then fusing it with the addition cannot show.
    """
    if exact:
        torch.addcmul(total, left, right, out=total)
    else:
        total += left * right
