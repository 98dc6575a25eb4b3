"""With which probability MAGPRUNE keeps an entry, by its place in its row; `magprune` explains the rule."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mergeflow.methods.kernels.streams import HALF, NUMBERS


@lru_cache(maxsize=8)
def keep_probabilities(columns: int, density: float, epsilon: float) -> NDArray[np.float64]:
    """p by place in a row of `columns` entries, the largest magnitude first, float64 (columns,)."""
    if columns == 1:
        return np.full(1, density)
    ranks_below = np.arange(columns - 1, -1, -1, dtype=np.float64)
    return (density - epsilon) + 2.0 * epsilon * (ranks_below / (columns - 1))


def bounds(chances: NDArray[np.float64]) -> NDArray[np.int32]:
    """`counter_random.bound` of each probability (columns,)."""
    bounds: NDArray[np.int32] = (256.0 * np.ceil(chances * NUMBERS) - (HALF + 1)).astype(np.int32)
    return bounds
