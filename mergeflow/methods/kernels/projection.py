"""Projection of one delta on another: what of it points elsewhere is all that a merge need add."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from mergeflow.methods.kernels.elementwise import add_weighed
from mergeflow.methods.kernels.gram_matrix import entries
from mergeflow.methods.kernels.protocols import Record, Scratch
from mergeflow.methods.values import number


def perpendicular(
    blocks: Sequence[Tensor],
    records: Sequence[Record],
    parameters: Mapping[str, object],
    out: Tensor,
    scratch: Scratch,
    start: int,
) -> None:
    """R = X + alpha * (Y - p * X), p = X.Y / X.X: X, and alpha times what of Y is orthogonal to it; blocks X, Y (n,).

    The record is the Gram matrix of both as whole tensors. Computed as (1 - alpha * p) * X + alpha * Y.
    """
    (record,) = records
    alpha = number(parameters, "alpha")
    add_weighed(blocks, (1.0 - alpha * share(entries(record)), alpha), out, scratch)


def share(gram: Sequence[float]) -> float:
    """How much of X is in Y: X.Y / X.X in float64, from the products X.X, X.Y, Y.Y.

    0 for a zero X, to which everything is orthogonal; NaN when a product is not finite.
    """
    own, dot, _ = gram
    if not all(math.isfinite(product) for product in gram):
        return math.nan
    return dot / own if own > 0.0 else 0.0
