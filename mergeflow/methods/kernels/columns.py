"""Operations of `span` column by column: vectors run along the first axis of a tensor, across its rows.

A block holds parts of many columns and all of none, so their Gram matrices are a statistic: lists of one number for
each column. A flat index modulo `columns` (the product of the other axes) is the column, however the tensor is cut.

Sums are taken as those of whole tensors are (`sums`), only that the number of lanes is a multiple of the number of
columns; the lanes of a column are folded in halves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from mergeflow.methods.kernels.gram_matrix import entries
from mergeflow.methods.kernels.lanes import LANES
from mergeflow.methods.kernels.protocols import PointwiseKernel, Record, Scratch, pieces
from mergeflow.methods.kernels.rows import add_weighed_by
from mergeflow.methods.kernels.span import SPANS
from mergeflow.methods.values import whole


class ColumnGrams:
    """The dot products X_i . X_j, i <= j, of each column of k tensors: record {"gram": k (k + 1) / 2 x columns floats}.

    Parameter: columns. The record lists the first dot product of every column, then the second of every column.
    """

    needs_sample = False

    def __init__(self, size: int, parameters: Mapping[str, object]) -> None:
        self.wanted = range(size)
        self._columns = whole(parameters, "columns")
        self._width = max(1, LANES // self._columns) * self._columns
        self._totals: list[Tensor] = []
        self._copies: list[Tensor] = []
        self._product = torch.empty(0)

    def sample(self, blocks: Sequence[Tensor]) -> None:
        """Not needed."""

    def update(self, start: int, blocks: Sequence[Tensor], scratch: Scratch) -> None:
        """Adds one block of each tensor, (n,)."""
        if not self._totals:
            self._allocate(len(blocks), blocks[0].device)
        for begin, end in pieces(start, blocks[0].numel(), self._width):
            count, lane = end - begin, (start + begin) % self._width
            wide = [copy[:count].copy_(block[begin:end]) for copy, block in zip(self._copies, blocks, strict=True)]
            pairs = [(left, right) for i, left in enumerate(wide) for right in wide[i:]]
            for total, (left, right) in zip(self._totals, pairs, strict=True):
                total[lane : lane + count] += torch.mul(left, right, out=self._product[:count])

    def finish(self) -> Record:
        """The record, after one pass."""
        return {"gram": [dot for total in self._totals for dot in self._folded(total)]}

    def _allocate(self, inputs: int, device: torch.device) -> None:
        width = min(self._width, len(self.wanted))
        sums = inputs * (inputs + 1) // 2
        self._totals = list(torch.zeros((sums, self._width), dtype=torch.float64, device=device))
        self._copies = list(torch.empty((inputs, width), dtype=torch.float64, device=device))
        self._product = torch.empty(width, dtype=torch.float64, device=device)

    def _folded(self, total: Tensor) -> list[float]:
        lanes = total.view(-1, self._columns).clone()
        count = len(lanes)
        while count > 1:
            half = (count + 1) // 2
            lanes[: count - half] += lanes[half:count]
            count = half
        dots: list[float] = lanes[0].tolist()
        return dots


# Remembered for the next block of the same tensor: finding them takes some microseconds a column.
@lru_cache(maxsize=4)
def _coefficients(op: str, gram: tuple[float, ...], columns: int, parameters: tuple[tuple[str, object], ...]) -> Tensor:
    """(k, columns) float64: the coefficients of each column."""
    own = dict(parameters)
    dots = [gram[first : first + columns] for first in range(0, len(gram), columns)]
    found = [SPANS[op]({"gram": list(column)}, own) for column in zip(*dots, strict=True)]
    return torch.tensor(found, dtype=torch.float64).T.contiguous()


def of_columns(op: str) -> PointwiseKernel:
    """The kernel of an operation of `span` on each column: R = sum(c_i X_i), each c_i rounded once.

    Parameters: columns, and the operation's own, none of them a list.
    """

    def kernel(
        blocks: Sequence[Tensor],
        records: Sequence[Record],
        parameters: Mapping[str, object],
        out: Tensor,
        scratch: Scratch,
        start: int,
    ) -> None:
        (record,) = records
        columns = whole(parameters, "columns")
        found = _coefficients(op, entries(record), columns, tuple(sorted(parameters.items())))
        coefficients = found.to(out)
        for begin, end in _row_parts(start, out.numel(), columns):
            own = [values[begin:end] for values in (*blocks, out, scratch(0))]
            first = (start + begin) % columns
            if first == 0 and (end - begin) % columns == 0:
                *parts, result, buffer = [values.view(-1, columns) for values in own]
                add_weighed_by(parts, list(coefficients), result, buffer)
            else:
                *parts, result, buffer = own
                some = coefficients[:, first : first + end - begin]
                add_weighed_by(parts, list(some), result, buffer)

    return kernel


def _row_parts(start: int, count: int, columns: int) -> list[tuple[int, int]]:
    """A block cut into the end of a row, whole rows, and the beginning of one: (begin, end), those there are."""
    head = min(-start % columns, count)
    tail = head + (count - head) // columns * columns
    return [(begin, end) for begin, end in ((0, head), (head, tail), (tail, count)) if begin < end]


nuslerp = of_columns("nuslerp")
