"""Spherical interpolation: an angle from the Gram matrix, two coefficients, one weighted sum.

The result lies in the span of its two inputs, so all there is to find is two numbers. They are computed in float64 from
the inputs' dot products, which are themselves float64, and so agree with any exact evaluation to the last bit that a
float32 coefficient has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from mergeflow.methods.kernels.elementwise import add_weighed
from mergeflow.methods.kernels.protocols import Record, Scratch
from mergeflow.methods.values import number

# mergekit's constants: vectors closer to parallel (or opposite) than this cosine are interpolated linearly, because
# sin(angle) is then a small number to divide by; a vector shorter than this has no direction.
PARALLEL = 0.9995
SHORTEST = 1e-8


def slerp(
    blocks: Sequence[Tensor],
    records: Sequence[Record],
    parameters: Mapping[str, object],
    out: Tensor,
    scratch: Scratch,
    start: int,
) -> None:
    """R = c_A A + c_Z Z, with the coefficients of `coefficients`."""
    (record,) = records
    gram = record["gram"]
    assert isinstance(gram, Sequence)
    add_weighed(blocks, coefficients(gram, number(parameters, "t")), out, scratch)


def coefficients(gram: Sequence[float], t: float) -> tuple[float, float]:
    """The factors of A and Z in their spherical interpolation at t (Shoemake 1985).

        a = angle(A, Z);  sin((1 - t) a) / sin(a),  sin(t a) / sin(a)

    Args:
        gram: the dot products A.A, A.Z, Z.Z.
        t: 0 is A, 1 is Z; not bounded.

    Returns:
        Two float64 numbers; NaN when a dot product is not finite, so that a damaged tensor is not passed on as sound.
    """
    cosine = _cosine(gram)
    if abs(cosine) > PARALLEL:
        return 1.0 - t, t

    angle = math.acos(cosine)
    return math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def _cosine(gram: Sequence[float]) -> float:
    own, dot, other = gram
    if not all(math.isfinite(entry) for entry in gram):
        return math.nan
    return min(1.0, max(-1.0, dot / (_divisor(own) * _divisor(other))))


def _divisor(square: float) -> float:
    norm = math.sqrt(square)
    return norm if norm > SHORTEST else 1.0
