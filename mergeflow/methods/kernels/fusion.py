"""Arcee Fusion: of another model, take over the parameters that changed most, where a row's distribution changed.

    p = softmax(X) + 1e-8,  q = softmax(B) + 1e-8      over each row
    k = sum p ln(p / q)                                Kullback-Leibler divergence of a row
    I = |X - B| k                                      importance of an element
    h = median(I) + 1.5 (Q3(I) - Q1(I))                the usual bound for outliers
    R = X where I >= h, else B

A divergence is a small difference of large sums, so it is taken in float64. It is never negative: what rounding leaves
below zero is zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mergeflow.methods.kernels.elementwise import rounded
from mergeflow.methods.kernels.exponential import exp_, log_
from mergeflow.methods.kernels.protocols import Record, Scratch
from mergeflow.methods.kernels.rows import row_sums, some_rows
from mergeflow.methods.values import real

SMALLEST_PROBABILITY = 1e-8
OUTLIER_RANGES = 1.5


def importance(
    blocks: Sequence[Tensor],
    records: Sequence[Record],
    parameters: Mapping[str, object],
    out: Tensor,
    scratch: Scratch,
    start: int,
) -> None:
    """I = |X - B| k over the blocks X, B (rows, columns); k is rounded once to the compute dtype."""
    other, base = blocks
    rows, columns = out.shape
    slices = list(some_rows(rows, columns))
    most = max((some.stop - some.start for some in slices), default=0)
    buffers = torch.empty((5, most, columns), dtype=torch.float64, device=out.device)

    torch.sub(other, base, out=out).abs_()
    for some in slices:
        divergence = _divergence(other[some], base[some], list(buffers[:, : some.stop - some.start]))  # (some, 1)
        out[some] *= divergence.to(out.dtype)


def _divergence(other: Tensor, base: Tensor, buffers: list[Tensor]) -> Tensor:
    """sum p ln(p / q) of each row: (rows, 1) float64, in `buffers`."""
    p, q, ratio, *spare = buffers
    _softmax(other, p, (spare[0], spare[1]))
    _softmax(base, q, (spare[0], spare[1]))
    torch.div(p, q, out=ratio)
    log_(ratio, (spare[0], spare[1])).mul_(p)
    return row_sums(ratio).clamp_(min=0.0)


def _softmax(values: Tensor, out: Tensor, buffers: tuple[Tensor, Tensor]) -> None:
    """out = softmax of each row, plus the smallest probability."""
    out.copy_(values)
    out -= out.amax(dim=1, keepdim=True)
    exp_(out, buffers)
    out /= row_sums(buffers[0].copy_(out))
    out += SMALLEST_PROBABILITY


def fuse(
    blocks: Sequence[Tensor],
    records: Sequence[Record],
    parameters: Mapping[str, object],
    out: Tensor,
    scratch: Scratch,
    start: int,
) -> None:
    """R = X where I >= h, else B, over the blocks X, B, I (n,); a NaN in X or B stays."""
    other, base, weighed = blocks
    bound = _bound(*(real(record, "threshold") for record in records))
    # Rounded as importances were: what reaches the bound exactly still does. (Changes of bfloat16 models are small
    # multiples of one step, so in a row an importance often is 1.5 times another.)
    mask = torch.ge(weighed, rounded(bound, weighed), out=scratch(0))

    # Products with 0 and 1 are exact, so this is a selection, ten times as fast as one.
    torch.mul(other, mask, out=out)
    torch.sub(1.0, mask, out=mask)
    out += mask.mul_(base)


def _bound(lower: float, median: float, upper: float) -> float:
    return median + OUTLIER_RANGES * (upper - lower)
