"""Where models disagree most: the variance of their task vectors, and its largest entries (the "select" of SCE)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mergeflow.methods.kernels.order_statistics import TorchMagnitudes
from mergeflow.methods.kernels.protocols import Record, Scratch
from mergeflow.methods.kernels.rank_search import MOST_HELD, SMALL, RankSearch
from mergeflow.methods.kernels.trimming import trim
from mergeflow.methods.values import number


def variance(
    blocks: Sequence[Tensor],
    records: Sequence[Record],
    parameters: Mapping[str, object],
    out: Tensor,
    scratch: Scratch,
    start: int,
) -> None:
    """R = sum((D_i - mean)^2) / n, mean = sum(D_i) / n, over the blocks (n,) of two or more task vectors.

    Computed in float64 and rounded once: so it is 0 where all are equal, and that the models were listed in another
    order does not show. Scratch: three buffers.
    """
    wide = out.dtype == torch.float64
    step = max(1, out.numel() if wide else out.numel() // 2)
    for begin in range(0, out.numel(), step):
        some = slice(begin, begin + step)
        some_out = out[some]
        total, mean, value = (_as_float64(scratch(i), some_out.numel()) for i in range(3))
        mean.zero_()
        for block in blocks:
            mean.add_(value.copy_(block[some]))
        mean.div_(len(blocks))

        total.zero_()
        for block in blocks:
            value.copy_(block[some]).sub_(mean)
            total.add_(value.mul_(value))
        some_out.copy_(total.div_(len(blocks)))


def select(
    blocks: Sequence[Tensor],
    records: Sequence[Record],
    parameters: Mapping[str, object],
    out: Tensor,
    scratch: Scratch,
    start: int,
) -> None:
    """R = D where the variance V is among the largest, as `LargestShare` found them; 0 elsewhere."""
    delta, variances = blocks
    trim([variances], records, parameters, out, scratch, start)
    out.sign_().mul_(delta)


class LargestShare:
    """The k-th largest |X|, k = trunc(share * the number of entries that are not 0): as `KthMagnitude`'s record.

    Where k is 0, nothing is to be kept: threshold infinity, cut -1. The product is rounded to float32, as mergekit's
    is. k is known when the first pass has counted; until then the bracket is placed by what the sample says of it.
    """

    def __init__(self, size: int, parameters: Mapping[str, object], most_held: int = MOST_HELD) -> None:
        self._size = size
        self._share = number(parameters, "share")
        self._most_held = most_held
        self._sample: np.ndarray[tuple[int, ...], np.dtype[np.floating]] = np.empty(0, dtype=np.float32)
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

    def sample(self, blocks: Sequence[Tensor]) -> None:
        """Takes a sample (s,) of the tensor, in rising order of index."""
        (block,) = blocks
        self._sample = block.abs().cpu().numpy()

    def update(self, start: int, blocks: Sequence[Tensor], scratch: Scratch) -> None:
        """Takes one block (n,)."""
        (block,) = blocks
        if self._record is not None:
            return
        if not self._is_counted:
            self._present += int(torch.count_nonzero(block))
        if self._search is None:
            self._search = self._begin(is_all=block.numel() == self._size)
        if self._search is not None:
            self._search.update(start, TorchMagnitudes(block, scratch))

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


def _as_float64(buffer: Tensor, count: int) -> Tensor:
    """The memory of a buffer as float64 (count,); new memory where it is too small, for a single number."""
    whole = buffer[: buffer.numel() // 2 * 2].view(torch.float64)
    return whole[:count] if len(whole) >= count else torch.empty(count, dtype=torch.float64, device=buffer.device)
