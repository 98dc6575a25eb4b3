"""A search for an order statistic as a statistic: what its protocol asks of every one, whatever the blocks are."""

from __future__ import annotations

from typing import Generic, TypeVar

from mergeflow.methods.kernels.protocols import Record
from mergeflow.methods.kernels.rank_search import RankSearch
from mergeflow.methods.kernels.share_search import ShareSearch

Search = TypeVar("Search", RankSearch, ShareSearch)


class SearchStatistic(Generic[Search]):
    """The part that does not look at blocks; `sample` and `update` are for those who know them."""

    def __init__(self, search: Search) -> None:
        self._search: Search = search

    @property
    def needs_sample(self) -> bool:
        """Small tensors need none."""
        return self._search.needs_sample

    @property
    def wanted(self) -> range:
        """What the next pass must bring."""
        return self._search.wanted

    def finish(self) -> Record | None:
        """The record; None when `wanted` must be read (again)."""
        return self._search.finish()
