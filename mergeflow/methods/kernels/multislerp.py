"""The spherical mean of several vectors by one step on the sphere, as coefficients.

    u_i = X_i / (|X_i| + eps)      m = sum(w_i u_i) / |sum(w_i u_i)|
    T = sum(w_i (u_i - (u_i . m) m))      r = cos(|T| + eps) m + sin(|T| + eps) T / (|T| + eps)
    R = sum(w_i |X_i|) r

T, the mean of the tangents at m, is zero by the very choice of m: what is left of r is cos(eps) m.
"""

from __future__ import annotations

import math
from functools import lru_cache

from mergeflow.methods.kernels.gram_matrix import NEGLIGIBLE, length, lengths, matrix


# Remembered for the next block of the same tensor.
@lru_cache(maxsize=64)
def coefficients(upper: tuple[float, ...], weights: tuple[float, ...], eps: float) -> tuple[float, ...]:
    """The factor of each vector in their spherical mean; their weights when the directions cancel or there are none.

    Args:
        upper: the dot products of i <= j, row by row.
        weights: of the vectors, as they enter the formula.
        eps: added to lengths; a mean direction this short is none.

    Returns:
        k float64 numbers; NaN when a dot product is not finite.
    """
    gram = matrix(upper)
    if gram is None:
        return (math.nan,) * len(weights)

    norms = lengths(gram)
    shares = [weight / (norm + eps) if norm > 0.0 else 0.0 for weight, norm in zip(weights, norms, strict=True)]
    mean = length(gram, shares)
    if mean <= max(eps, NEGLIGIBLE * math.fsum(abs(weight) for weight in weights)):
        return weights

    scale = math.cos(eps) * math.fsum(weight * norm for weight, norm in zip(weights, norms, strict=True)) / mean
    return tuple(scale * share for share in shares)
