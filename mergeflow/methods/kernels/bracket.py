"""Where to look for an order statistic: intervals of magnitudes, guessed from a sample or halved by force.

Magnitudes are the non-negative numbers of a format, whose bit patterns, read as integers, have the same order. So an
interval of magnitudes is an interval of integers: it can be halved, and "all that lies strictly above x" is the
integer after x's. NaN lies beyond infinity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Magnitudes = NDArray[np.floating]

# The rank that is looked for lies within this many standard errors of its place in the sample, all but surely.
STANDARD_ERRORS = 4.0

# Neighbouring elements are alike (rows of a matrix have their own scale), so a sample made of runs says less than its
# size: the standard error is taken between this many parts of it.
PARTS = 64


@dataclass(frozen=True, slots=True)
class Interval:
    """The magnitudes of `dtype` whose bit patterns lie in [first, last]; empty when first > last."""

    first: int
    last: int
    dtype: np.dtype[np.floating]

    @classmethod
    def everything(cls, dtype: np.dtype[np.floating]) -> Interval:
        """Zero to infinity."""
        return cls(0, _bits(math.inf, dtype), dtype)

    @property
    def empty(self) -> bool:
        return self.first > self.last

    @property
    def low(self) -> float:
        return _magnitude(self.first, self.dtype)

    @property
    def high(self) -> float:
        return _magnitude(self.last, self.dtype)

    def above(self, magnitude: float) -> Interval:
        """What lies strictly above `magnitude`."""
        return Interval(_bits(magnitude, self.dtype) + 1, self.last, self.dtype)

    def below(self, magnitude: float) -> Interval:
        """What lies strictly below `magnitude`."""
        return Interval(self.first, _bits(magnitude, self.dtype) - 1, self.dtype)

    def middle(self) -> Interval:
        """The one magnitude that halves the interval."""
        middle = (self.first + self.last) // 2
        return Interval(middle, middle, self.dtype)

    def common(self, other: Interval) -> Interval:
        """What lies in both."""
        return Interval(max(self.first, other.first), min(self.last, other.last), self.dtype)


def around_rank(sample: Magnitudes, share: float, widening: float = 1.0) -> Interval:
    """The interval in which the magnitude lies that `share` of a tensor reaches, as far as a sample of it tells.

    Args:
        sample: magnitudes (s,), s > 0, in the order of their place in the tensor.
        share: rank from the top, divided by the tensor's size.
        widening: factor of the interval's width in ranks, for when the first guess missed.
    """
    size = len(sample)
    sample = np.fmin(sample, np.inf)  # a NaN counts as infinite
    ordered = np.sort(sample)[::-1]  # faster here than two partitions

    def at(rank: int) -> float:
        return float(ordered[min(max(rank, 1), size) - 1])

    rank = share * size
    margin = widening * (STANDARD_ERRORS * _standard_error(sample, at(round(rank)), share) + 2.0)
    upper, lower = math.floor(rank - margin), math.ceil(rank + margin)
    high = math.inf if upper < 1 else at(upper)
    low = 0.0 if lower > size else at(lower)
    return Interval(_bits(low, sample.dtype), _bits(high, sample.dtype), sample.dtype)


def _standard_error(sample: Magnitudes, magnitude: float, share: float) -> float:
    """Of the number of elements of the sample that reach `magnitude`: as if independent, or between its parts."""
    size = len(sample)
    independent = math.sqrt(size * share * (1.0 - share))
    length = size // PARTS
    if length == 0:
        return independent
    reached = sample[: length * PARTS] >= magnitude
    counts = [np.count_nonzero(part) for part in np.split(reached, PARTS)]
    between = float(np.std(counts)) * math.sqrt(PARTS)
    return max(independent, between)


def _bits(magnitude: float, dtype: np.dtype[np.floating]) -> int:
    return int(np.array(magnitude, dtype=dtype).view(_integer(dtype)))


def _magnitude(bits: int, dtype: np.dtype[np.floating]) -> float:
    return float(np.array(bits, dtype=_integer(dtype)).view(dtype))


def _integer(dtype: np.dtype[np.floating]) -> np.dtype[np.unsignedinteger]:
    return np.dtype(f"u{dtype.itemsize}")
