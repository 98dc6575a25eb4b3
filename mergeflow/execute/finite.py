"""NaN and infinities that a merge would put where its inputs had none.

Checking every number for it would cost as much as a merge. The float32 sum of a block is NaN or infinite whenever
a number in it is, and costs a tenth of a nanosecond per number; only then is the block looked at closely.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class NonFinite:
    """The first non-finite number of an output tensor: its flat index, and whether an input tensor of it has any.

    Whole tensors are what counts, not the element or its block: a dot product that is NaN makes every element NaN, and
    what a run says must not depend on how tensors are cut.
    """

    index: int
    inherited: bool


def first_non_finite(block: torch.Tensor) -> int | None:
    """Index of the first NaN or infinity of a block (n,); None when there is none, or it holds no floats."""
    if not block.is_floating_point() or _sum_is_finite(block):
        return None
    bad = ~torch.isfinite(block.to(torch.float64))
    return int(bad.nonzero()[0]) if bool(bad.any()) else None  # a sum may overflow when no number did


def _sum_is_finite(block: torch.Tensor) -> bool:
    if block.dtype.itemsize == 1:
        block = block.to(torch.float32)  # torch cannot sum fp8
    total = block.sum(dtype=torch.float64 if block.dtype == torch.float64 else torch.float32)
    return bool(torch.isfinite(total))
