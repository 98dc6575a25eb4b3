"""The Karcher mean of directions (the point of a sphere with the least squared arcs to all), iterated on coefficients.

    u_i = X_i / |X_i|                                   directions; u, all T and R are in their span, so each is
    u   = sum(a_i u_i) / |...|                          k numbers, and each dot product is one of the Gram matrix
    repeat  T = sum(a_i (angle_i / sin(angle_i)) (u_i - cos(angle_i) u)),   cos(angle_i) = u . u_i
            u = cos(|T|) u + sin(|T|) T / |T|           until |T| < tol
    R = mean(|X_i|) u

After Karcher 1977 (gradient descent with the exponential and logarithm of the sphere). A direction nearly opposite to u
draws it no way rather than another: in u_i - cos(angle_i) u next to nothing is left, and angle_i / sin(angle_i) would
make much of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from mergeflow.methods.kernels.arc import PARALLEL
from mergeflow.methods.kernels.gram_matrix import (
    NEGLIGIBLE,
    Matrix,
    directions,
    length,
    lengths,
    matrix,
    products,
    vectors,
)


# Remembered for the next block of the same tensor.
@lru_cache(maxsize=64)
def coefficients(upper: tuple[float, ...], max_iter: int, tol: float) -> tuple[float, ...]:
    """The factor of each vector in the Karcher mean of their directions, times the mean of their lengths.

    Vectors of length `tol` or less have no direction, but count in the mean length. When none has one, the result is
    the mean of the vectors.

    Args:
        upper: the dot products of i <= j, row by row.
        max_iter: at most so many steps after the normalized mean of the directions.
        tol: a step shorter than this is not taken, and is the last.

    Returns:
        k float64 numbers; NaN when a dot product is not finite.
    """
    gram = matrix(upper)
    if gram is None:
        return (math.nan,) * vectors(upper)
    norms = lengths(gram)
    valid = [i for i, norm in enumerate(norms) if norm > tol]
    if not valid:
        return (1.0 / len(norms),) * len(norms)

    among = directions(tuple(tuple(gram[i][j] for j in valid) for i in valid), [norms[i] for i in valid])
    mean = _mean_direction(among, max_iter, max(tol, NEGLIGIBLE))
    scale = math.fsum(norms) / len(norms)
    factors = [0.0] * len(norms)
    for i, share in zip(valid, mean, strict=True):
        factors[i] = scale * share / norms[i]
    return tuple(factors)


def _mean_direction(among: Matrix, max_iter: int, tol: float) -> list[float]:
    """The Karcher mean of directions with the Gram matrix `among`, as their coefficients."""
    count = len(among)
    mean = _normalized(among, [1.0 / count] * count, tol) or [1.0, *[0.0] * (count - 1)]
    for _ in range(max_iter):
        step = _step(among, mean, tol)
        norm = length(among, step)
        if norm < tol:
            break
        moved = [math.cos(norm) * own + math.sin(norm) / norm * change for own, change in zip(mean, step, strict=True)]
        mean = _normalized(among, moved, tol) or moved
    return mean


def _step(among: Matrix, mean: Sequence[float], tol: float) -> list[float]:
    """T: the mean of the arcs from `mean` to each direction, in the plane that touches the sphere at `mean`."""
    step = [0.0] * len(among)
    along = 0.0
    for i, product in enumerate(products(among, mean)):
        cosine = min(1.0, max(-1.0, product))
        angle = math.acos(cosine)
        if angle < tol or cosine < -PARALLEL:
            continue
        factor = angle / math.sin(angle) / len(among)
        step[i] += factor
        along += factor * cosine
    return [change - along * own for change, own in zip(step, mean, strict=True)]


def _normalized(among: Matrix, combination: Sequence[float], tol: float) -> list[float] | None:
    """The combination, divided by its length; None when that is less than `tol`."""
    norm = length(among, combination)
    return None if norm < tol else [share / norm for share in combination]
