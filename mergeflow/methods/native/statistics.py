"""Statistics of narrow floats by the native library: the records of `kernels.sums` and `kernels.rank_search`."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from mergeflow.methods.kernels.lanes import LANES, fold
from mergeflow.methods.kernels.protocols import Record
from mergeflow.methods.kernels.rank_search import RankSearch
from mergeflow.methods.kernels.share_search import ShareSearch
from mergeflow.methods.kernels.tally import Counts
from mergeflow.methods.native.library import Counts as NativeCounts
from mergeflow.methods.native.library import library
from mergeflow.methods.values import number, whole


@dataclass(frozen=True, slots=True)
class Block:
    """Numbers in memory, in the dtype they are stored in: float32, bfloat16 or float16."""

    address: int
    dtype: int
    count: int

    def widened(self) -> NDArray[np.float32]:
        """A float32 copy (count,)."""
        return widened(self, 0, self.count)


MOST_VECTORS = 16  # MOST_GRAM of blocks.c

# Bytes of a number, by its dtype in blocks.c.
ITEMSIZES = (4, 2, 2)


Searched = TypeVar("Searched", RankSearch, ShareSearch)


class NativeStatistic(Protocol):
    """As `kernels.protocols.Statistic`, of blocks whose start is a multiple of LANES."""

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


class _Search(Generic[Searched]):
    """An order statistic of one tensor's magnitudes: the search for it, shown native blocks."""

    def __init__(self, search: Searched) -> None:
        self._search: Searched = search

    @property
    def needs_sample(self) -> bool:
        """Small tensors need none."""
        return self._search.needs_sample

    @property
    def wanted(self) -> range:
        """What the next pass must bring."""
        return self._search.wanted

    def sample(self, blocks: Sequence[Block]) -> None:
        """Takes a sample (s,) of the tensor, in rising order of index."""
        self._search.sample(np.abs(blocks[0].widened()))

    def update(self, start: int, blocks: Sequence[Block]) -> None:
        """Takes one block."""
        self._search.update(start, _Magnitudes(blocks[0]))

    def finish(self) -> Record | None:
        """The record; None when `wanted` must be read (again)."""
        return self._search.finish()


def kth_magnitude(size: int, parameters: Mapping[str, object]) -> NativeStatistic:
    """The k-th largest |D|: record {"threshold": float, "cut": int}. Parameter: k, at least 1."""
    return _Search(RankSearch(size, whole(parameters, "k")))


def largest_share(size: int, parameters: Mapping[str, object]) -> NativeStatistic:
    """The k-th largest |X|, k a share of those that are not 0: the same record. Parameter: share."""
    return _Search(ShareSearch(size, number(parameters, "share")))


class _Magnitudes:
    """The magnitudes of a block, compared as they are read: |x| is never written."""

    dtype = np.dtype(np.float32)

    def __init__(self, block: Block) -> None:
        self._block = block

    @property
    def count(self) -> int:
        return self._block.count

    def count_present(self) -> int:
        return int(np.count_nonzero(widened(self._block, 0, self._block.count)))

    def on_host(self, begin: int, end: int) -> NDArray[np.float32]:
        values = widened(self._block, begin, end)
        return np.abs(values, out=values)

    def compare(self, begin: int, end: int, low: float, high: float) -> Counts:
        part = _part(self._block, begin, end)
        inside = np.empty(part.count + 1, dtype=np.float32)
        counts = NativeCounts()
        _native().mergeflow_compare(
            part.address, part.dtype, part.count, low, high, ctypes.byref(counts), inside.ctypes.data
        )
        return Counts(counts.above, counts.at_high, counts.at_low, inside[: counts.inside].copy())


def _part(block: Block, begin: int, end: int) -> Block:
    return Block(block.address + begin * ITEMSIZES[block.dtype], block.dtype, end - begin)


def widened(block: Block, begin: int, end: int) -> NDArray[np.float32]:
    """A float32 copy of the elements [begin, end)."""
    part = _part(block, begin, end)
    out = np.empty(part.count, dtype=np.float32)
    _native().mergeflow_widen(part.address, part.dtype, out.ctypes.data, part.count)
    return out


def _native() -> ctypes.CDLL:
    found = library()
    assert found is not None  # whoever makes a native statistic has looked
    return found


SUMS: Mapping[str, type[Gram | MagnitudeSum]] = MappingProxyType({"gram": Gram, "magnitude_sum": MagnitudeSum})

STATISTICS: Mapping[str, Callable[[int, Mapping[str, object]], NativeStatistic]] = MappingProxyType(
    {"kth_magnitude": kth_magnitude, "largest_share": largest_share}
)
