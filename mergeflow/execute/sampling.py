"""Where a sample of a tensor is taken: runs of elements, or of whole rows, spread evenly over it."""

from __future__ import annotations

from mergeflow.methods.kernels.protocols import sample_size

SAMPLE_RUN_ELEMENTS = 1024

# Long rows make a sample larger than it need be; fewer than these say little about the others.
LEAST_ROWS = 4


def sample_runs(size: int, row: int | None, most: int) -> list[tuple[int, int]]:
    """(start, length) of the runs, in rising order; none when the tensor is too small, or its rows too long.

    Args:
        row: elements of a row when runs must be whole rows.
        most: elements that the runs may have in all.
    """
    if row is None:
        return _spread(size, SAMPLE_RUN_ELEMENTS, sample_size(size) // SAMPLE_RUN_ELEMENTS, unit=1)

    length = max(1, SAMPLE_RUN_ELEMENTS // row) * row
    runs = max(sample_size(size) // length, LEAST_ROWS)
    return _spread(size, length, min(runs, most // length, size // length), unit=row)


def _spread(size: int, length: int, runs: int, unit: int) -> list[tuple[int, int]]:
    """Runs of one length that start at multiples of `unit`; a single one would say nothing about the rest."""
    if runs < 2:
        return []
    stride = (size - length) // unit // (runs - 1) * unit
    return [(k * stride, length) for k in range(runs)]
