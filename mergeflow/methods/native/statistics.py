"""Statistics of narrow floats by the native library: the records of `kernels.sums` and `kernels.rank_search`."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mergeflow.methods.kernels.lanes import LANES, fold
from mergeflow.methods.kernels.protocols import Record
from mergeflow.methods.kernels.rank_search import RankSearch
from mergeflow.methods.kernels.search_statistic import Search, SearchStatistic
from mergeflow.methods.kernels.share_search import ShareSearch
from mergeflow.methods.kernels.tally import Counts
from mergeflow.methods.native.library import Counts as NativeCounts
from mergeflow.methods.native.library import loaded
from mergeflow.methods.values import number, whole

MOST_VECTORS = 16  # MOST_GRAM of blocks.c

# Bytes of a number, by its dtype in blocks.c.
ITEMSIZES = (4, 2, 2)


@dataclass(frozen=True, slots=True)
class Block:
    """Numbers in memory, in the dtype they are stored in: float32, bfloat16 or float16."""

    address: int
    dtype: int
    count: int

    def part(self, begin: int, end: int) -> Block:
        """The elements [begin, end)."""
        return Block(self.address + begin * ITEMSIZES[self.dtype], self.dtype, end - begin)

    def widened(self) -> NDArray[np.float32]:
        """A float32 copy (count,)."""
        out = np.empty(self.count, dtype=np.float32)
        loaded().mergeflow_widen(self.address, self.dtype, out.ctypes.data, self.count)
        return out


class NativeStatistic(Protocol):
    """As `kernels.protocols.Statistic`, of native blocks."""

    @property
    def needs_sample(self) -> bool: ...

    @property
    def wanted(self) -> range: ...

    def sample(self, blocks: Sequence[Block]) -> None: ...

    def update(self, start: int, blocks: Sequence[Block]) -> None: ...

    def finish(self) -> Record | None: ...


class LaneSums:
    """A statistic that sums over lanes: the library adds to its `totals`, (sums, lanes) float64, as it reads.

    Args:
        inputs: how many tensors it is taken of.
    """

    products: bool

    def __init__(self, size: int, inputs: int) -> None:
        sums = inputs * (inputs + 1) // 2 if self.products else 1
        self.totals = np.zeros((sums, min(size, LANES)))

    def folded(self) -> list[float]:
        """The sums."""
        return [fold(total) for total in self.totals]


class Gram(LaneSums):
    """The dot products of k tensors, i <= j, row by row: record {"gram": k (k + 1) / 2 floats}."""

    products = True

    def finish(self) -> Record:
        """The record, after one pass."""
        return {"gram": self.folded()}


class MagnitudeSum(LaneSums):
    """sum(|X|) of one tensor: record {"sum": float}."""

    products = False

    def finish(self) -> Record:
        """The record, after one pass."""
        return {"sum": self.folded()[0]}


class _NativeSearch(SearchStatistic[Search]):
    """An order statistic of one tensor's magnitudes."""

    def sample(self, blocks: Sequence[Block]) -> None:
        """Takes a sample (s,) of the tensor, in rising order of index."""
        self._search.sample(np.abs(blocks[0].widened()))

    def update(self, start: int, blocks: Sequence[Block]) -> None:
        """Takes one block."""
        self._search.update(start, _Magnitudes(blocks[0]))


def kth_magnitude(size: int, parameters: Mapping[str, object]) -> NativeStatistic:
    """The k-th largest |D|: record {"threshold": float, "cut": int}. Parameter: k, at least 1."""
    return _NativeSearch(RankSearch(size, whole(parameters, "k")))


def largest_share(size: int, parameters: Mapping[str, object]) -> NativeStatistic:
    """The k-th largest |X|, k a share of those that are not 0: the same record. Parameter: share."""
    return _NativeSearch(ShareSearch(size, number(parameters, "share")))


class _Magnitudes:
    """The magnitudes of a block, compared as they are read: |x| is never written."""

    dtype = np.dtype(np.float32)

    def __init__(self, block: Block) -> None:
        self._block = block

    @property
    def count(self) -> int:
        return self._block.count

    def count_present(self) -> int:
        return int(np.count_nonzero(self._block.widened()))

    def on_host(self, begin: int, end: int) -> NDArray[np.float32]:
        values = self._block.part(begin, end).widened()
        return np.abs(values, out=values)

    def compare(self, begin: int, end: int, low: float, high: float) -> Counts:
        part = self._block.part(begin, end)
        inside = np.empty(part.count + 1, dtype=np.float32)
        counts = NativeCounts()
        loaded().mergeflow_compare(
            part.address, part.dtype, part.count, low, high, ctypes.byref(counts), inside.ctypes.data
        )
        return Counts(counts.above, counts.at_high, counts.at_low, inside[: counts.inside].copy())


SUMS: Mapping[str, type[Gram | MagnitudeSum]] = MappingProxyType({"gram": Gram, "magnitude_sum": MagnitudeSum})

STATISTICS: Mapping[str, Callable[[int, Mapping[str, object]], NativeStatistic]] = MappingProxyType(
    {"kth_magnitude": kth_magnitude, "largest_share": largest_share}
)
