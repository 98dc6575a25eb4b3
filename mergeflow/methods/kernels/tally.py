"""One pass over a tensor's magnitudes with a bracket [low, high]: count what is above, hold what is inside.

What equals one of the bracket's ends is only counted, per piece of the tensor; what lies strictly inside is held, in
pieces, in order. In deltas of half-precision models a few values make up most of a tensor, and a guessed bracket ends
on such values: they cost two counters. When more is held than the limit, the bracket is narrowed on the way, exactly:
what has been seen is known completely, and what lies outside of the narrower bracket only needs to be counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mergeflow.methods.kernels.bracket import Magnitudes


@dataclass(frozen=True, slots=True)
class Place:
    """The order statistic is found: its value, and which of the elements that equal it are still among the k largest.

    Args:
        magnitude: the k-th largest.
        rank: how many of the elements that equal it are among the k largest, at least 1.
        equal: the number of elements that equal it, by piece, in order.
    """

    magnitude: float
    rank: int
    equal: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Counts:
    """Some magnitudes compared with a bracket [low, high].

    Args:
        above: how many are larger than high, NaN included.
        at_high: how many equal high.
        at_low: how many equal low; 0 when low is high.
        inside: those strictly between low and high, in order.
    """

    above: int
    at_high: int
    at_low: int
    inside: Magnitudes


def compare(magnitudes: Magnitudes, low: float, high: float) -> Counts:
    """Compares magnitudes (n,) in memory with a bracket: four comparisons, whatever the values are."""
    to_high = magnitudes <= high
    up_to_high = int(np.count_nonzero(to_high))
    below_high = np.less(magnitudes, high, out=to_high)
    at_high = up_to_high - int(np.count_nonzero(below_high))
    above = len(magnitudes) - up_to_high
    if low == high:
        return Counts(above, at_high, 0, magnitudes[:0])

    to_low = magnitudes <= low
    inside = np.compress(below_high ^ to_low, magnitudes)
    at_low = int(np.count_nonzero(to_low)) - int(np.count_nonzero(np.less(magnitudes, low, out=to_low)))
    return Counts(above, at_high, at_low, inside)


Outcome = Place | Literal["above", "below"]


class Tally:
    """The counts of one pass. Pieces are known by their number and come in rising order."""

    def __init__(self, low: float, high: float, limit: int) -> None:
        self.low = low
        self.high = high
        self._limit = limit
        self._above = 0
        self._at_high: dict[int, int] = {}
        self._at_low: dict[int, int] = {}
        self._inside: dict[int, Magnitudes] = {}
        self._held = 0

    @property
    def full(self) -> bool:
        """Whether more is held than should be, so that `narrow` is due."""
        return self._held > self._limit

    def add(self, piece: int, counts: Counts) -> None:
        """Counts one piece, or a part of it, compared with this bracket."""
        self._above += counts.above
        self._at_high[piece] = self._at_high.get(piece, 0) + counts.at_high
        self._at_low[piece] = self._at_low.get(piece, 0) + counts.at_low
        before = self._inside.get(piece)
        self._inside[piece] = counts.inside if before is None else np.concatenate([before, counts.inside])
        self._held += len(counts.inside)

    def narrow(self, seen: float, rank: int) -> None:
        """Makes the bracket so narrow that half the limit is held, around where the order statistic should lie.

        Args:
            seen: the share of the tensor that was counted.
            rank: the rank that is looked for in the whole tensor.
        """
        expected = round(rank * seen) - self._above - sum(self._at_high.values())
        upper = min(max(expected - self._limit // 4, 1), self._held)
        lower = min(max(expected + self._limit // 4, 1), self._held)
        ordered = np.partition(self._all_inside(), (self._held - lower, self._held - upper))
        self.low, self.high = float(ordered[self._held - lower]), float(ordered[self._held - upper])

        self._above += sum(self._at_high.values())
        held, self._inside, self._held = self._inside, {}, 0
        self._at_high, self._at_low = {}, {}
        for piece, members in held.items():
            self.add(piece, compare(members, self.low, self.high))

    def locate(self, rank: int) -> Outcome:
        """Where the `rank`-th largest element is, after a whole pass: found, or on which side of the bracket."""
        rank -= self._above
        if rank <= 0:
            return "above"

        at_high = sum(self._at_high.values())
        if rank <= at_high:
            return Place(self.high, rank, self._at_high)
        rank -= at_high
        if rank <= self._held:
            return self._select(rank)
        rank -= self._held
        return Place(self.low, rank, self._at_low) if rank <= sum(self._at_low.values()) else "below"

    def _select(self, rank: int) -> Place:
        """The `rank`-th largest of what is held."""
        values = self._all_inside()
        magnitude = np.partition(values, self._held - rank)[self._held - rank]
        rank -= int(np.count_nonzero(values > magnitude))
        equal = {piece: int(np.count_nonzero(members == magnitude)) for piece, members in self._inside.items()}
        return Place(float(magnitude), rank, equal)

    def _all_inside(self) -> Magnitudes:
        return np.concatenate(list(self._inside.values()))
