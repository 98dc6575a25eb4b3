"""Sums over whole tensors, in float64, the same to the last bit however they are computed.

A library's own sum adds in an order that depends on the vector width, the number of threads, the device. Here the
order is ours: an element belongs to the lane (its index modulo LANES); each lane adds its elements in rising order,
which is one elementwise addition per LANES elements; at the end the lanes are folded in halves, and the last few are
added exactly. No step leaves a choice to the machine. A lane of a tensor with 10^9 elements adds 15,000 numbers, so
its relative error stays near 10^-14.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mergeflow.methods.kernels.protocols import SUM_BLOCK, Record, Scratch

# Large enough to make the cost of a call small beside its work (and calls few: threads take turns between them), small
# enough for its buffers to stay near the processor.
LANES = 65536
assert SUM_BLOCK % LANES == 0

# Folding stops here: so few numbers are added exactly at no cost.
EXACT = 64


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

    def totals(self, count: int) -> list[Tensor]:
        """The first `count` lanes of each sum, to add to."""
        return self._totals if count == self._width else [total[:count] for total in self._totals]

    def folded(self) -> list[float]:
        """The sums."""
        return [_fold(total.clone()) for total in self._totals]


def _fold(lanes: Tensor) -> float:
    """The sum of the lanes (n,), in halves down to EXACT numbers; overwrites them."""
    count = lanes.numel()
    while count > EXACT:
        half = (count + 1) // 2
        lanes[: count - half] += lanes[half:count]
        count = half
    return _exact_sum(lanes[:count].tolist())


def _exact_sum(values: Sequence[float]) -> float:
    """`math.fsum`, which raises where a plain sum gives an infinity or NaN."""
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):
        return sum(values)


def _runs(count: int) -> list[tuple[int, int]]:
    """A block of `count` elements cut into (offset, length) of at most LANES each."""
    return [(offset, min(LANES, count - offset)) for offset in range(0, count, LANES)]


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
        for offset, count in _runs(block.numel()):
            (values,) = self._sums.widened(blocks, offset, count)
            (total,) = self._sums.totals(count)
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
        for offset, count in _runs(blocks[0].numel()):
            values = self._sums.widened(blocks, offset, count)
            pairs = [(left, right) for i, left in enumerate(values) for right in values[i:]]
            for total, (left, right) in zip(self._sums.totals(count), pairs, strict=True):
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
