"""Keeping the largest entries of a task vector, and restoring the sum of magnitudes it had before.

Which entries are kept was decided by `order_statistics`: those above the threshold, and of those equal to it the ones
up to the index `cut`. So nearly every block is either before the cut or after it, and takes one comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mergeflow.methods.kernels.elementwise import multiply
from mergeflow.methods.kernels.norms import rescaling
from mergeflow.methods.kernels.protocols import Record, Scratch
from mergeflow.methods.values import real, whole


def trim(
    blocks: Sequence[Tensor],
    records: Sequence[Record],
    parameters: Mapping[str, object],
    out: Tensor,
    scratch: Scratch,
    start: int,
) -> None:
    """R = D where |D| > threshold, or |D| = threshold at an index up to the cut; 0 elsewhere. A NaN stays.

    The first step of TIES (Yadav et al., 2306.01708).
    """
    (delta,), (record,) = blocks, records
    threshold, cut = real(record, "threshold"), whole(record, "cut")

    before = min(max(cut + 1 - start, 0), delta.numel())
    keep_above(delta[:before], _next_below(threshold, delta.dtype), out[:before])
    keep_above(delta[before:], threshold, out[before:])


def keep_above(values: Tensor, bound: float, out: Tensor) -> None:
    """out = values where |values| > bound, else +0 (n,)."""
    if values.numel():
        # "Hard shrinkage" is exactly this selection, in one pass where a mask would take three.
        torch.hardshrink(values, bound, out=out)


def _next_below(magnitude: float, dtype: torch.dtype) -> float:
    """The largest number of the format below `magnitude`, so that "> it" means ">= magnitude"; 0 for 0."""
    zero = torch.zeros((), dtype=dtype)
    return float(torch.nextafter(torch.tensor(magnitude, dtype=dtype), zero))


def rescale(
    blocks: Sequence[Tensor],
    records: Sequence[Record],
    parameters: Mapping[str, object],
    out: Tensor,
    scratch: Scratch,
    start: int,
) -> None:
    """R = M * (b / a), b the sum of |D| before trimming and a after; R = M where either is below 1e-7."""
    (trimmed,), (before, after) = blocks, records
    multiply(trimmed, rescaling(real(before, "sum"), real(after, "sum")), out)
