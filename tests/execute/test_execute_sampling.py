"""Where samples are taken: spread over the tensor, in whole rows where they must be."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mergeflow.execute.sampling import sample_runs

SIZES = st.integers(0, 1 << 28)


@given(SIZES)
def test_runs_lie_apart_and_inside(size: int) -> None:
    """Rising, not overlapping, the first at the beginning and the last near the end."""
    runs = sample_runs(size, None, 1 << 19)
    assert all(first + length <= second for (first, length), (second, _) in pairwise(runs))
    if runs:
        assert runs[0][0] == 0
        assert size - len(runs) * 1024 <= runs[-1][0] + runs[-1][1] <= size


@given(st.integers(1, 200_000), st.integers(1, 5000), st.integers(1, 8))
def test_runs_are_whole_rows(row: int, rows: int, fitting: int) -> None:
    """Of a matrix with rows of any length: whole ones, no more of them than a block holds."""
    most = max(65536, fitting * row)
    runs = sample_runs(row * rows, row, most)
    assert all(start % row == length % row == 0 for start, length in runs)
    assert all(first + length <= second for (first, length), (second, _) in pairwise(runs))
    assert sum(length for _, length in runs) <= most
    assert all(start + length <= row * rows for start, length in runs)


def test_two_rows_of_four_or_more() -> None:
    """Long rows are sampled as long as two fit; a single one says nothing of the others."""
    assert len(sample_runs(100 * 50_000, 50_000, 1 << 19)) == 4
    assert len(sample_runs(100 * 50_000, 50_000, 100_000)) == 2
    assert sample_runs(100 * 50_000, 50_000, 65_536) == []
