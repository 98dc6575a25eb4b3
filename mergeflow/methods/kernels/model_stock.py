"""Model Stock: how far along the mean of the task vectors, from the angles between them."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import combinations

from mergeflow.methods.kernels.gram_matrix import lengths, matrix, vectors

# mergekit's constants: the least product of two lengths that is divided by; and how small 1 + (N - 1) cos may be.
SHORTEST_PRODUCT = 1e-6
SMALLEST_DIVISOR = 1e-6

# As task vectors come to cancel each other, the formula walks ever further against the little that is left of their
# mean. This is where it stops: for two models of equal length, at a cosine of -0.91, four lengths from the base.
FURTHEST = 20.0


# Remembered for the next block of the same tensor.
@lru_cache(maxsize=64)
def coefficients(upper: tuple[float, ...]) -> tuple[float, ...]:
    """The factor of each delta: t / N, with the t of `ratio`."""
    count = vectors(upper)
    return (ratio(upper) / count,) * count


def ratio(upper: tuple[float, ...]) -> float:
    """t = N cos / (1 + (N - 1) cos), cos the mean over all pairs of deltas (Jang et al., 2403.19522, eq. 5).

    Args:
        upper: the deltas' dot products of i <= j, row by row; at least two deltas.

    Returns:
        1 for parallel deltas, 0 for orthogonal ones, negative for opposed ones, but no less than -FURTHEST; 0 where
        they cancel. NaN when a dot product is not finite.
    """
    gram = matrix(upper)
    if gram is None:
        return math.nan
    norms = lengths(gram)
    count = len(norms)
    cosines = [
        min(1.0, max(-1.0, gram[i][j] / max(norms[i] * norms[j], SHORTEST_PRODUCT)))
        for i, j in combinations(range(count), 2)
    ]
    return ratio_of(math.fsum(cosines) / len(cosines), count)


def ratio_of(cosine: float, count: int) -> float:
    """t for `count` deltas whose mean cosine is known."""
    divisor = 1.0 + (count - 1) * cosine
    return 0.0 if divisor < SMALLEST_DIVISOR else max(-FURTHEST, count * cosine / divisor)
