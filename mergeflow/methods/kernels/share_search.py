"""The search for the largest share of those entries of a tensor that are not 0; beside `rank_search`, made of it."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from mergeflow.methods.kernels.bracket import Magnitudes
from mergeflow.methods.kernels.protocols import Record
from mergeflow.methods.kernels.rank_search import MOST_HELD, SMALL, BlockMagnitudes, RankSearch


class PresentMagnitudes(BlockMagnitudes, Protocol):
    """The magnitudes of one block, of which some are 0."""

    def count_present(self) -> int:
        """How many are not 0, NaN included."""


class ShareSearch:
    """The k-th largest |X|, k = trunc(share * the number of entries that are not 0): as `KthMagnitude`'s record.

    Where k is 0, nothing is to be kept: threshold infinity, cut -1. The product is rounded to float32, as mergekit's
    is. k is known when the first pass has counted; until then the bracket is placed by what the sample says of it.
    """

    def __init__(self, size: int, share: float, most_held: int = MOST_HELD) -> None:
        self._size = size
        self._share = share
        self._most_held = most_held
        self._sample: Magnitudes = np.empty(0, dtype=np.float32)
        self._search: RankSearch | None = None
        self._present = 0
        self._is_counted = False
        self._record: Record | None = {"threshold": math.inf, "cut": -1} if size == 0 else None

    @property
    def needs_sample(self) -> bool:
        """Small tensors need none."""
        return self._record is None and self._size > SMALL

    @property
    def wanted(self) -> range:
        """What the next pass must bring."""
        return range(self._size) if self._search is None else self._search.wanted

    def sample(self, magnitudes: Magnitudes) -> None:
        """Takes the magnitudes of a sample (s,) of the tensor, in rising order of index."""
        self._sample = magnitudes

    def update(self, start: int, block: PresentMagnitudes) -> None:
        """Takes one block."""
        if self._record is not None:
            return
        if not self._is_counted:
            self._present += block.count_present()
        if self._search is None:
            self._search = self._begin(is_all=block.count == self._size)
        if self._search is not None:
            self._search.update(start, block)

    def finish(self) -> Record | None:
        """The record; None when `wanted` must be read (again)."""
        if self._record is None and not self._is_counted:
            self._is_counted = True
            if self._count(self._present) == 0:
                self._record = {"threshold": math.inf, "cut": -1}
            elif self._search is not None:
                self._search.aim(self._count(self._present))
        if self._record is None and self._search is not None:
            self._record = self._search.finish()
        return self._record

    def _begin(self, *, is_all: bool) -> RankSearch | None:
        """The search for the rank that is known, or for the one the sample says; None when nothing is looked for."""
        present = self._present
        if not is_all:
            share = np.count_nonzero(self._sample) / len(self._sample) if len(self._sample) else 1.0
            present = round(share * self._size)
        rank = self._count(present)
        if rank == 0 and is_all:
            return None
        search = RankSearch(self._size, min(max(rank, 1), max(self._size - 1, 1)), self._most_held)
        search.sample(self._sample)
        return search

    def _count(self, present: int) -> int:
        return min(present, int(np.float32(present) * np.float32(self._share)))
