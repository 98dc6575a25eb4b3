"""The angle between two vectors, from their dot products, and what spherical interpolation makes of it.

Plain float64 numbers: whatever computes the dot products, and whatever applies the coefficients, uses these. They agree
with any exact evaluation to the last bit that a float32 coefficient has.

SLERP and NuSLERP differ in where they give up the arc for the chord: SLERP near both ends; NuSLERP near the opposite
end only, where the arc's direction is what rounding makes of it, and dividing by sin(angle) would blow that up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

# mergekit's constants: vectors closer to parallel (or opposite) than this cosine are interpolated linearly, because
# sin(angle) is then a small number to divide by; a vector shorter than this has no direction.
PARALLEL = 0.9995
SHORTEST = 1e-8
SHORTEST_NUSLERP = 1e-7


def coefficients(gram: Sequence[float], t: float) -> tuple[float, float]:
    """The factors of A and Z in their spherical interpolation at t (Shoemake 1985).

        a = angle(A, Z);  sin((1 - t) a) / sin(a),  sin(t a) / sin(a)

    Args:
        gram: the dot products A.A, A.Z, Z.Z.
        t: 0 is A, 1 is Z; not bounded.

    Returns:
        Two float64 numbers; NaN when a dot product is not finite, so that a damaged tensor is not passed on as sound.
    """
    cosine = _cosine(gram, _divisor)
    if abs(cosine) > PARALLEL:
        return 1.0 - t, t
    return _on_the_arc(cosine, t)


def nuslerp_coefficients(gram: Sequence[float], t: float) -> tuple[float, float]:
    """The factors of P and Q in their interpolation at t, which is the arc's unless they are opposite (or equal).

    Args, Returns: those of `coefficients`.
    """
    cosine = _cosine(gram, lambda square: max(math.sqrt(square), SHORTEST_NUSLERP))
    if cosine < -PARALLEL or cosine == 1.0:
        return 1.0 - t, t
    return _on_the_arc(cosine, t)


def _on_the_arc(cosine: float, t: float) -> tuple[float, float]:
    angle = math.acos(cosine)
    return math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def _cosine(gram: Sequence[float], divisor: Callable[[float], float]) -> float:
    """Of the angle between two vectors, given what to divide by for a vector of some squared length."""
    own, dot, other = gram
    if not all(math.isfinite(entry) for entry in gram):
        return math.nan
    return min(1.0, max(-1.0, dot / (divisor(own) * divisor(other))))


def _divisor(square: float) -> float:
    norm = math.sqrt(square)
    return norm if norm > SHORTEST else 1.0
