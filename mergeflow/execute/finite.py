"""NaN and infinities that a merge would put where its inputs had none, found with torch.

Checking every number for it would cost as much as a merge. The float32 sum of a block is NaN or infinite whenever
a number in it is, and costs a tenth of a nanosecond per number; only then is the block looked at closely.
"""

from __future__ import annotations

import torch

from mergeflow.dtypes import DType
from mergeflow.execute.buffers import torch_dtype


def find_non_finite(block: memoryview, dtype: DType) -> int | None:
    """Index of the first NaN or infinity of numbers in memory; None when there is none, or they are no floats."""
    if not dtype.is_float or len(block) == 0:
        return None
    return first_non_finite(torch.frombuffer(block, dtype=torch_dtype(dtype.name)))


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
