"""Factors that give a task vector back the norm it had."""

from __future__ import annotations

# mergekit's bound: a task vector with less than this in all is not scaled up from rounding noise.
SMALLEST_SUM = 1e-7


def rescaling(before: float, after: float) -> float:
    """The factor that restores the L1 norm `before` to a tensor that has `after`; 1 when one is negligible."""
    if before < SMALLEST_SUM or after < SMALLEST_SUM:
        return 1.0
    return before / after
