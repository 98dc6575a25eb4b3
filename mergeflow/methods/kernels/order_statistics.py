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
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from mergeflow.methods.kernels.bracket import Interval, Magnitudes, around_rank
from mergeflow.methods.kernels.protocols import SUM_BLOCK, Record, Scratch
from mergeflow.methods.kernels.tally import Counts, Place, Tally, compare
from mergeflow.methods.values import whole

# A tensor up to this size, in one block, is partitioned as it is: that is faster than guessing.
SMALL = 262144

# How many elements a pass may hold (12 MB with the copies a selection makes); a bracket that holds more is narrowed.
MOST_HELD = 2**20

# After this many brackets that missed, the interval is halved instead: at most 64 passes more.
GUESSES = 3


class KthMagnitude:
    """The k-th largest |D| of one tensor: record {"threshold": float, "cut": int}. Parameter: k, at least 1."""

    def __init__(self, size: int, parameters: Mapping[str, object], most_held: int = MOST_HELD) -> None:
        self.wanted = range(size)
        self._size = size
        self._k = whole(parameters, "k")
        if self._k < 1:
            raise ValueError(f"k must be at least 1, not {self._k}")
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

    def sample(self, blocks: Sequence[Tensor]) -> None:
        """Takes a sample (s,) of the tensor, in rising order of index."""
        (block,) = blocks
        self._sample = block.abs().cpu().numpy()

    def update(self, start: int, blocks: Sequence[Tensor], scratch: Scratch) -> None:
        """Takes one block (n,)."""
        (block,) = blocks
        if self._record is not None:
            return
        if self._tie is not None:
            self._find_cut(self._tie, start, block, scratch)
        elif block.numel() == self._size <= SMALL:
            self._record = _whole_record(_on_host(torch.abs(block, out=scratch(0))), self._k)
        else:
            self._count(start, block, scratch)

    def finish(self) -> Record | None:
        """The record; None when `wanted` must be read (again)."""
        if self._record is None and self._tally is not None and self._tie is None:
            outcome = self._tally.locate(self._k)
            if isinstance(outcome, Place):
                self._settle(outcome)
            else:
                self._look(outcome)
        return self._record

    def _count(self, start: int, block: Tensor, scratch: Scratch) -> None:
        tally = self._tally = self._tally or self._next_tally(block)
        for begin, end in _pieces(block.numel()):
            magnitudes = torch.abs(block[begin:end], out=scratch(0)[: end - begin])
            tally.add((start + begin) // SUM_BLOCK, _compare(magnitudes, tally.low, tally.high))
            if tally.full:
                tally.narrow((start + end) / self._size, self._k)

    def _next_tally(self, block: Tensor) -> Tally:
        if self._interval is None:
            self._interval = Interval.everything(_on_host(block[:0]).dtype)
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

    def _find_cut(self, tie: Place, start: int, block: Tensor, scratch: Scratch) -> None:
        begin = self.wanted.start - start
        if not 0 <= begin < block.numel():
            return
        magnitudes = torch.abs(block[begin : begin + len(self.wanted)], out=scratch(0)[: len(self.wanted)])
        equal = np.flatnonzero(_on_host(magnitudes) == tie.magnitude)
        self._record = {"threshold": tie.magnitude, "cut": self.wanted.start + int(equal[tie.rank - 1])}


def _pieces(count: int) -> list[tuple[int, int]]:
    """The pieces of a block of `count` elements, as (begin, end)."""
    return list(pairwise([*range(0, count, SUM_BLOCK), count]))


def _on_host(values: Tensor) -> Magnitudes:
    array: Magnitudes = values.cpu().numpy()
    return array


def _whole_record(magnitudes: Magnitudes, k: int) -> Record:
    """The record of a whole tensor (n,), k < n; `magnitudes` is not modified."""
    size = len(magnitudes)
    threshold = float(np.partition(magnitudes, size - k)[size - k])
    if math.isnan(threshold):
        return {"threshold": math.inf, "cut": -1}
    rank = k - (size - int(np.count_nonzero(magnitudes <= threshold)))
    equal = np.flatnonzero(magnitudes == threshold)
    return {"threshold": threshold, "cut": size - 1 if rank == len(equal) else int(equal[rank - 1])}


def _compare(magnitudes: Tensor, low: float, high: float) -> Counts:
    """By numpy on the host, where it compares and counts several times faster than torch does."""
    if magnitudes.device.type == "cpu":
        return compare(magnitudes.numpy(), low, high)
    return compare_on_device(magnitudes, low, high)


def compare_on_device(magnitudes: Tensor, low: float, high: float) -> Counts:
    """`tally.compare` on any device: only what lies inside the bracket is brought to the host."""
    up_to_high = int(torch.count_nonzero(magnitudes <= high))
    below_high = magnitudes < high
    at_high = up_to_high - int(torch.count_nonzero(below_high))
    above = magnitudes.numel() - up_to_high
    if low == high:
        return Counts(above, at_high, 0, _on_host(magnitudes[:0]))

    to_low = magnitudes <= low
    at_low = int(torch.count_nonzero(to_low)) - int(torch.count_nonzero(magnitudes < low))
    return Counts(above, at_high, at_low, _on_host(torch.masked_select(magnitudes, below_high ^ to_low)))
