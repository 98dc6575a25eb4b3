"""The base and one other model, or two."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.exact.inputs import Inputs


def nearswap(it: Inputs) -> Tensor:
    assert it.base is not None
    (other,) = it.models
    t: float = it.shared["t"]
    share = (t / (it.base - other).abs().clamp(min=1e-6)).clamp(0, 1)
    return share * other + (1 - share) * it.base


def arcee_fusion(it: Inputs) -> Tensor:
    assert it.base is not None
    (other,) = it.models
    rows = [tensor.reshape(1) if tensor.ndim == 0 else tensor for tensor in (other, it.base)]
    theirs, ours = (torch.softmax(row, -1) + 1e-8 for row in rows)
    divergence = (theirs * (theirs / ours).log()).sum(-1, keepdim=True)
    importance = ((rows[0] - rows[1]).abs() * divergence).reshape(other.shape)
    ranked = importance.reshape(-1).sort().values
    low, middle, high = (float(ranked[int(share * (len(ranked) - 1))]) for share in (0.25, 0.5, 0.75))
    # What reaches the bound exactly is taken, whatever rounding float64 has done on either side.
    return it.base + (other - it.base) * (importance >= (middle + 1.5 * (high - low)) * (1 - 1e-12))


def add_difference(it: Inputs) -> Tensor:
    tuned, origin = it.models
    return it.placed(it.shared["alpha"] * (tuned - origin))


def perpendicular(it: Inputs) -> Tensor:
    first, second = it.deltas
    square = float((first * first).sum())
    along = float((first * second).sum()) / square if square > 0 else 0.0
    return it.placed(first + it.shared["alpha"] * (second - along * first))
