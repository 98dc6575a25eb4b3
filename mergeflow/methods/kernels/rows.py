"""Operations of `span` row by row: each row of a matrix is a vector of its own, with its own coefficients.

    rows of X_1 ... X_k ── Gram matrix of each row ── coefficients (rows, k), float64 ── R = sum(c_i X_i)

A row is summed by folding it in halves, in float64: in an order that is ours, whoever computes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mergeflow.methods.kernels.protocols import Record, RowwiseKernel, Scratch
from mergeflow.methods.kernels.span import SPANS, Span

# Rows are taken together up to this many elements, so that their float64 copies stay near the processor.
TOGETHER = 32768


def row_sums(values: Tensor) -> Tensor:
    """The sum of each row of (rows, columns), as (rows, 1); overwrites them."""
    count = values.shape[1]
    while count > 1:
        half = (count + 1) // 2
        values[:, : count - half] += values[:, half:count]
        count = half
    return values[:, :1]


def some_rows(rows: int, columns: int) -> Iterator[slice]:
    """Slices of rows that are taken together: at least one."""
    together = max(1, TOGETHER // columns)
    return (slice(first, min(first + together, rows)) for first in range(0, rows, together))


def row_grams(blocks: Sequence[Tensor]) -> list[list[float]]:
    """For each row of the blocks (rows, columns), the dot products of i <= j: the rows of (rows, k (k + 1) / 2)."""
    rows, columns = blocks[0].shape
    most = min(max(1, TOGETHER // columns), rows)
    copies = torch.empty((len(blocks) + 1, most, columns), dtype=torch.float64, device=blocks[0].device)
    grams: list[list[float]] = []
    for some in some_rows(rows, columns):
        *wide, product = copies[:, : some.stop - some.start]
        for copy, block in zip(wide, blocks, strict=True):
            copy.copy_(block[some])
        pairs = [(left, right) for i, left in enumerate(wide) for right in wide[i:]]
        dots = [row_sums(torch.mul(left, right, out=product)).clone() for left, right in pairs]
        grams += torch.cat(dots, dim=1).tolist()
    return grams


def add_weighed_by(blocks: Sequence[Tensor], coefficients: Sequence[Tensor], out: Tensor, buffer: Tensor) -> None:
    """out = sum of coefficients[i] * blocks[i], added from first to last; a coefficient is spread over its block."""
    first, *others = zip(blocks, coefficients, strict=True)
    torch.mul(*first, out=out)
    for block, coefficient in others:
        out += torch.mul(block, coefficient, out=buffer)


def of_rows(span: Span) -> RowwiseKernel:
    """The kernel of an operation of `span` on each row: R = sum(c_i X_i), each c_i rounded once."""

    def kernel(
        blocks: Sequence[Tensor],
        records: Sequence[Record],
        parameters: Mapping[str, object],
        out: Tensor,
        scratch: Scratch,
        start: int,
    ) -> None:
        found = [span({"gram": gram}, parameters) for gram in row_grams(blocks)]
        coefficients = torch.tensor(found, dtype=torch.float64).to(out)  # (rows, k)
        add_weighed_by(blocks, list(coefficients.T.unsqueeze(-1)), out, scratch(0))

    return kernel


nuslerp = of_rows(SPANS["nuslerp"])
model_stock = of_rows(SPANS["model_stock"])
