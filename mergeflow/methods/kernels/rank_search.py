"""The exact k-th largest magnitude of a tensor, without sorting it and without a second copy of it.

    sample ── bracket [low, high] ── one pass: count above, hold what is inside ── partition of what is held
                                          │ the count says it missed: another bracket, another pass
                                          │ elements tie at the threshold: one more piece, to find the cut

A sample of some ten thousand elements places the threshold within about one percent of the ranks. One pass counts
what is above that bracket and holds what is inside; `numpy.partition` selects among those few. The result never
depends on the sample: where it misled, the counts show it, and the next bracket is wider; in the end the interval is
halved by force, so it always terminates.

Ties at the threshold are broken by index, so that exactly k elements survive: `cut` is the flat index of the last
element kept of those equal to the threshold. Counts of equal elements per piece of the tensor tell which piece holds
it; if not all equal ones are kept, that piece alone is read again.

A NaN counts as larger than every number, takes one of the k places and is always kept. With k NaNs or more, the
threshold is infinity and nothing else is kept: cut is -1.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Protocol

import numpy as np

from mergeflow.methods.kernels.bracket import Interval, Magnitudes, around_rank
from mergeflow.methods.kernels.protocols import SUM_BLOCK, Record, pieces
from mergeflow.methods.kernels.tally import Counts, Place, Tally

# A tensor up to this size, in one block, is partitioned as it is: that is faster than guessing.
SMALL = 262144

# How many elements a pass may hold (12 MB with the copies a selection makes); a bracket that holds more is narrowed.
MOST_HELD = 2**20

# After this many brackets that missed, the interval is halved instead: at most 64 passes more.
GUESSES = 3


class BlockMagnitudes(Protocol):
    """The magnitudes of one block (n,), wherever they are."""

    @property
    def count(self) -> int: ...

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """float32 or float64."""

    def on_host(self, begin: int, end: int) -> Magnitudes:
        """The magnitudes of the elements [begin, end); valid until the next call."""

    def compare(self, begin: int, end: int, low: float, high: float) -> Counts:
        """Those of [begin, end) compared with a bracket, as `tally.compare` does."""


class RankSearch:
    """The search for the k-th largest magnitude of a tensor of `size` elements: record {"threshold", "cut"}."""

    def __init__(self, size: int, k: int, most_held: int = MOST_HELD) -> None:
        self.wanted = range(size)
        self._size = size
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        self._k = k
        self._most_held = most_held
        self._sample: Magnitudes = np.empty(0, dtype=np.float32)
        self._interval: Interval | None = None
        self._tally: Tally | None = None
        self._misses = 0
        self._tie: Place | None = None
        self._record: Record | None = {"threshold": 0.0, "cut": size - 1} if self._k >= size else None

    @property
    def needs_sample(self) -> bool:
        """Small tensors need none."""
        return self._record is None and self._size > SMALL

    def sample(self, magnitudes: Magnitudes) -> None:
        """Takes the magnitudes of a sample (s,) of the tensor, in rising order of index."""
        self._sample = magnitudes

    def aim(self, k: int) -> None:
        """Looks for another rank from now on, at the end of a first pass that was made with a guess at it."""
        self._k = k

    def update(self, start: int, block: BlockMagnitudes) -> None:
        """Takes one block."""
        if self._record is not None:
            return
        if self._tie is not None:
            self._find_cut(self._tie, start, block)
        elif block.count == self._size <= SMALL:
            self._record = _whole_record(block.on_host(0, block.count), self._k)
        else:
            self._count(start, block)

    def finish(self) -> Record | None:
        """The record; None when `wanted` must be read (again)."""
        if self._record is None and self._tally is not None and self._tie is None:
            outcome = self._tally.locate(self._k)
            if isinstance(outcome, Place):
                self._settle(outcome)
            else:
                self._look(outcome)
        return self._record

    def _count(self, start: int, block: BlockMagnitudes) -> None:
        tally = self._tally = self._tally or self._next_tally(block.dtype)
        for begin, end in pieces(start, block.count):
            tally.add((start + begin) // SUM_BLOCK, block.compare(begin, end, tally.low, tally.high))
            if tally.full:
                tally.narrow((start + end) / self._size, self._k)

    def _next_tally(self, dtype: np.dtype[np.floating]) -> Tally:
        if self._interval is None:
            self._interval = Interval.everything(dtype)
        bracket = self._interval
        if self._misses >= GUESSES:
            bracket = bracket.middle()
        elif len(self._sample):
            guess = bracket.common(around_rank(self._sample, self._k / self._size, widening=8.0**self._misses))
            bracket = bracket if guess.empty else guess
        return Tally(bracket.low, bracket.high, self._most_held)

    def _look(self, side: str) -> None:
        """Prepares another pass, on one side of the bracket that missed."""
        assert self._interval is not None
        assert self._tally is not None
        if side == "above":
            self._interval = self._interval.above(self._tally.high)
        else:
            self._interval = self._interval.below(self._tally.low)
        self._tally = None
        self._misses += 1
        if self._interval.empty:
            # Only NaN lies beyond infinity.
            self._record = {"threshold": math.inf, "cut": -1}

    def _settle(self, place: Place) -> None:
        """Makes the record, or asks for the piece that holds the cut when only some of the equal elements are kept."""
        if place.rank == sum(place.equal.values()):
            self._record = {"threshold": place.magnitude, "cut": self._size - 1}
            return

        rank = place.rank
        for piece, equal in place.equal.items():
            if rank <= equal:
                self._tie = Place(place.magnitude, rank, {piece: equal})
                self.wanted = range(piece * SUM_BLOCK, min((piece + 1) * SUM_BLOCK, self._size))
                return
            rank -= equal

    def _find_cut(self, tie: Place, start: int, block: BlockMagnitudes) -> None:
        begin, end = max(self.wanted.start - start, 0), min(self.wanted.stop - start, block.count)
        if begin >= end:
            return
        equal = np.flatnonzero(block.on_host(begin, end) == tie.magnitude)
        if tie.rank <= len(equal):
            self._record = {"threshold": tie.magnitude, "cut": start + begin + int(equal[tie.rank - 1])}
        else:  # in the next block: this one holds only a part of the piece
            self._tie = replace(tie, rank=tie.rank - len(equal))


def _whole_record(magnitudes: Magnitudes, k: int) -> Record:
    """The record of a whole tensor (n,), k < n; `magnitudes` is not modified."""
    size = len(magnitudes)
    threshold = float(np.partition(magnitudes, size - k)[size - k])
    if math.isnan(threshold):
        return {"threshold": math.inf, "cut": -1}
    rank = k - (size - int(np.count_nonzero(magnitudes <= threshold)))
    equal = np.flatnonzero(magnitudes == threshold)
    return {"threshold": threshold, "cut": size - 1 if rank == len(equal) else int(equal[rank - 1])}
