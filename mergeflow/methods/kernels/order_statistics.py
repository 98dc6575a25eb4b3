"""The exact k-th largest magnitude of torch tensors; `rank_search` and `share_search` say how it is found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mergeflow.methods.kernels.bracket import Magnitudes
from mergeflow.methods.kernels.protocols import Scratch
from mergeflow.methods.kernels.rank_search import MOST_HELD, RankSearch
from mergeflow.methods.kernels.search_statistic import Search, SearchStatistic
from mergeflow.methods.kernels.share_search import ShareSearch
from mergeflow.methods.kernels.tally import Counts, compare
from mergeflow.methods.values import number, whole


class TorchSearch(SearchStatistic[Search]):
    """An order statistic of one tensor's magnitudes."""

    def sample(self, blocks: Sequence[Tensor]) -> None:
        """Takes a sample (s,) of the tensor, in rising order of index."""
        (block,) = blocks
        self._search.sample(block.abs().cpu().numpy())

    def update(self, start: int, blocks: Sequence[Tensor], scratch: Scratch) -> None:
        """Takes one block (n,)."""
        (block,) = blocks
        self._search.update(start, TorchMagnitudes(block, scratch))


class KthMagnitude(TorchSearch[RankSearch]):
    """The k-th largest |D| of one tensor: record {"threshold": float, "cut": int}. Parameter: k, at least 1."""

    def __init__(self, size: int, parameters: Mapping[str, object], most_held: int = MOST_HELD) -> None:
        super().__init__(RankSearch(size, whole(parameters, "k"), most_held))


class LargestShare(TorchSearch[ShareSearch]):
    """The k-th largest |X|, k = trunc(share * the number of entries that are not 0): the same record."""

    def __init__(self, size: int, parameters: Mapping[str, object], most_held: int = MOST_HELD) -> None:
        super().__init__(ShareSearch(size, number(parameters, "share"), most_held))


class TorchMagnitudes:
    """The magnitudes of a block on any device, taken piece by piece into a scratch buffer."""

    def __init__(self, block: Tensor, scratch: Scratch) -> None:
        self._block = block
        self._scratch = scratch

    @property
    def count(self) -> int:
        return self._block.numel()

    @property
    def dtype(self) -> np.dtype[np.floating]:
        return _on_host(self._block[:0]).dtype

    def on_host(self, begin: int, end: int) -> Magnitudes:
        return _on_host(self._magnitudes(begin, end))

    def compare(self, begin: int, end: int, low: float, high: float) -> Counts:
        return _compare(self._magnitudes(begin, end), low, high)

    def count_present(self) -> int:
        return int(torch.count_nonzero(self._block))

    def _magnitudes(self, begin: int, end: int) -> Tensor:
        return torch.abs(self._block[begin:end], out=self._scratch(0)[: end - begin])


def _on_host(values: Tensor) -> Magnitudes:
    array: Magnitudes = values.cpu().numpy()
    return array


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
