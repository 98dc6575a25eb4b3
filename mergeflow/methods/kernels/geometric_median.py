"""The geometric median: the point with the least weighted sum of distances to all, iterated on coefficients.

    y = sum(c_i X_i), sum(c_i) = 1;     y <- sum(w_i / d_i X_i) / sum(w_i / d_i),  d_i = |X_i - y|      (Weiszfeld 1937)

Distances are measured between differences D_i = X_i - X_0, whose dot products are exact enough for models that are
nearly the same; those of the X_i would not be. X_0 itself is the origin, and takes no part in a product.

A model is the median when the others together draw it away less than its own weight holds it; that is asked first of
each, because Weiszfeld's steps come to such a point slowly. A step from a point that is a model, but not the median, is
that of Vardi and Zhang (2000).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from mergeflow.methods.kernels.gram_matrix import NEGLIGIBLE, Matrix, length, matrix

# Where a model's own weight and the pull of the others are this close, every point between is a median: no model is.
TIE = 1e-9


# Remembered for the next block of the same tensor.
@lru_cache(maxsize=64)
def coefficients(upper: tuple[float, ...], weights: tuple[float, ...], max_iter: int, tol: float) -> tuple[float, ...]:
    """The share of each model in their geometric median.

    Args:
        upper: the dot products of D_i and D_j, 1 <= i <= j, row by row.
        weights: of X_0, X_1, ...; none negative, and not all zero.
        max_iter: at most so many steps, from the weighted mean on.
        tol: a step shorter than this share of the largest distance between two models is the last.

    Returns:
        One float64 number for each model, their sum one; NaN when a dot product is not finite.
    """
    gram = matrix(upper)
    if gram is None:
        return (math.nan,) * len(weights)

    count = len(weights)
    gram = ((0.0,) * count, *((0.0, *row) for row in gram))
    corners = [tuple(float(i == k) for i in range(count)) for k in range(count)]
    extent = max(_distance(gram, one, other) for one in corners for other in corners)
    for corner in corners:
        held, drawn = _forces(gram, weights, corner, extent)
        if length(gram, _pull(drawn, corner)) < held * (1.0 - TIE):
            return corner

    total = math.fsum(weights)
    median = tuple(weight / total for weight in weights)
    for _ in range(max_iter):
        moved = _moved(gram, weights, median, extent)
        step = _distance(gram, moved, median)
        median = moved
        if step <= tol * extent:
            break
    return median


def _moved(gram: Matrix, weights: Sequence[float], point: tuple[float, ...], extent: float) -> tuple[float, ...]:
    """One step of Weiszfeld's; from a point that is a model, as much of it as that model's weight lets go."""
    held, drawn = _forces(gram, weights, point, extent)
    total = math.fsum(drawn)
    if total == 0.0:
        return point

    pull = length(gram, _pull(drawn, point))
    kept = min(1.0, held / pull) if pull > 0.0 else 1.0
    return tuple((1.0 - kept) * force / total + kept * own for force, own in zip(drawn, point, strict=True))


def _forces(gram: Matrix, weights: Sequence[float], point: Sequence[float], extent: float) -> tuple[float, list[float]]:
    """The weight of the models at a point, and w_i / d_i of the others (of those at the point, 0)."""
    places = [[own - float(i == k) for i, own in enumerate(point)] for k in range(len(gram))]
    distances = [length(gram, place) for place in places]
    apart = [distance > NEGLIGIBLE * extent for distance in distances]
    held = math.fsum(weight for weight, is_apart in zip(weights, apart, strict=True) if not is_apart)
    forces = zip(weights, distances, apart, strict=True)
    return held, [weight / distance if is_apart else 0.0 for weight, distance, is_apart in forces]


def _pull(drawn: Sequence[float], point: Sequence[float]) -> list[float]:
    """The sum of drawn_i (X_i - point), as a combination."""
    total = math.fsum(drawn)
    return [force - total * own for force, own in zip(drawn, point, strict=True)]


def _distance(gram: Matrix, one: Sequence[float], other: Sequence[float]) -> float:
    return length(gram, [left - right for left, right in zip(one, other, strict=True)])
