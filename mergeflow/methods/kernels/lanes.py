"""The lanes in which whole tensors are summed: which element belongs to which, and how they are added in the end.

`sums` explains the rule; here is what torch and the native library have in common.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mergeflow.methods.kernels.protocols import SUM_BLOCK, pieces

# Large enough to make the cost of a call small beside its work (and calls few: threads take turns between them), small
# enough for its buffers to stay near the processor.
LANES = 65536
assert SUM_BLOCK % LANES == 0

# Folding stops here: so few numbers are added exactly at no cost.
EXACT = 64


def fold(lanes: NDArray[np.float64]) -> float:
    """The sum of the lanes (n,), in halves down to EXACT numbers; overwrites them."""
    count = len(lanes)
    while count > EXACT:
        half = (count + 1) // 2
        lanes[: count - half] += lanes[half:count]
        count = half
    return _exact_sum(lanes[:count].tolist())


def _exact_sum(values: Sequence[float]) -> float:
    """`math.fsum`, which raises where a plain sum gives an infinity or NaN."""
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):
        return sum(values)


def runs(start: int, count: int) -> list[tuple[int, int, int]]:
    """A block of `count` elements from index `start` on as (offset in the block, first lane, length).

    A run ends with the last lane, so each of its elements has a lane of its own, wherever the block starts.
    """
    return [(begin, (start + begin) % LANES, end - begin) for begin, end in pieces(start, count, LANES)]
