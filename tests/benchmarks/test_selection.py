"""The benchmark of statistics compares like with like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from benchmarks.selection import delta, timings, ways


def number(result: Any) -> float:
    """What a run found: of a record, the entry that the others compute too."""
    if isinstance(result, Mapping):
        return float(result["threshold"] if "threshold" in result else result["sum"])
    return float(result)


@pytest.mark.parametrize("elements", [2, 63, 4096, 100_000])
def test_every_tool_finds_the_same(elements: int) -> None:
    """A faster answer to another question would be no comparison."""
    for name, tools in ways(delta(elements)).items():
        if name != "ranks in rows":
            first, *others = (number(run()) for run in tools.values())
            assert others == pytest.approx([first] * len(others), rel=1e-6)


def test_ranks_are_of_the_same_rows() -> None:
    """Ours gives a masked delta instead of ranks, of as many rows; the two argsorts agree on them."""
    ours, theirs, others = (run() for run in ways(delta(3 * 4096 + 5))["ranks in rows"].values())
    assert torch.as_tensor(theirs).shape == torch.as_tensor(others).shape == (3, 4096)
    assert ours.shape == (3, 4096)
    assert 0.3 < float((ours == 0).double().mean()) < 0.9


def test_the_tensor_is_the_same_every_time_and_has_ties() -> None:
    """Figures of two days are of the same tensor; as in real fine-tunes, magnitudes are few."""
    tensor = delta(100_000)
    assert torch.equal(tensor, delta(100_000))
    assert len(tensor.abs().unique()) < 10_000


def test_each_tool_is_timed_at_each_size() -> None:
    """Three statistics, three or four tools each."""
    found = list(timings([1, 64], repeat=1))
    assert {timing.statistic for timing in found} == {"k-th largest magnitude", "ranks in rows", "sum of magnitudes"}
    assert len(found) in (18, 20)  # without a compiler there are no kernels in C
    assert all(timing.seconds >= 0 for timing in found)
