"""block_scaled: a matrix of 8-bit numbers, each block of it with a scale: R = X * S[row // b0, column // b1].

The fp8 weights of DeepSeek-V3 (arXiv 2412.19437, section 3.3: blocks of 128 x 128), and scales for each row or for
the whole tensor, which are blocks of (1, columns) and of (rows, columns). An 8-bit number is a float32 exactly, and so
is its scale; their product is rounded once. A block at the matrix's edge is cut off where the matrix ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from mergeflow.methods.views.protocols import Part, elements, numpy_dtype, whole

# Elements in work at a time.
AT_ONCE = 1 << 18


class BlockScaled:
    """The view. Parts: X (..., rows, columns) of one byte each, and S (..., ceil(rows / b0), ceil(columns / b1)).

    `parameters["block"]` is (b0, b1). S is small and kept; it may have any float dtype.
    """

    def __init__(
        self, parts: Sequence[Part], parameters: Mapping[str, object], dtype: str, shape: tuple[int, ...]
    ) -> None:
        self._matrix, scales = parts
        self._dtype = numpy_dtype(dtype)
        self._rows, self._columns = shape[-2:]
        self._block = cast(tuple[int, int], tuple(cast(Sequence[int], parameters["block"])))
        across, down = -(-self._columns // self._block[1]), -(-self._rows // self._block[0])
        self._scales = whole(scales).astype(np.float32).reshape(-1, across)  # (matrices * down, across)
        self._down = down
        # All 256 numbers that one byte can be, so that converting is looking up.
        bytes_ = np.arange(256, dtype=np.uint8)
        self._values = bytes_.view(numpy_dtype(self._matrix.dtype)).astype(np.float32)

    def read(self, start: int, out: memoryview) -> None:
        wanted = np.frombuffer(out, self._dtype)
        for first, last in _pieces(start, start + len(wanted), self._columns):
            raw = elements(self._matrix, first, last - first).view(np.uint8)
            with np.errstate(all="ignore"):  # a scale that is no number is the tensor's value, not our trouble
                scaled = self._values[raw] * self._multipliers(first, last)
            wanted[first - start : last - start] = scaled

    def _multipliers(self, start: int, end: int) -> NDArray[np.float32]:
        """The scale of each element of a range that is whole rows, or a part of one: flat."""
        high, wide = self._block
        row, column = divmod(start, self._columns)
        last_column = min(column + end - start, self._columns)
        rows = np.arange(row, -(-end // self._columns))
        lines = rows // self._rows * self._down + rows % self._rows // high
        blocks = np.arange(column, last_column) // wide
        found: NDArray[np.float32] = self._scales[lines[:, None], blocks]  # (rows, columns)
        return found.reshape(-1)


def _pieces(start: int, end: int, columns: int) -> Iterator[tuple[int, int]]:
    """A range of elements cut into whole rows, and parts of one row, of at most `AT_ONCE` elements (or one row)."""
    whole_rows = max(1, AT_ONCE // columns) * columns
    while start < end:
        column = start % columns
        if column or end - start < columns or columns > AT_ONCE:
            stop = min(end, start - column + columns, start + AT_ONCE)
        else:
            stop = min(start + whole_rows, end - end % columns)
        yield start, stop
        start = stop
