"""rotary_rows: the rows of a query or key matrix in the order of transformers, from that of GGUF's ``llama``.

Rotary embeddings turn pairs of rows of a head. transformers pairs row i with row i + D/2 of a head of D rows; the
original Llama, and GGUF files of that architecture, pair row 2i with row 2i + 1. With j = 0, 1 and i < D/2:

    R[h*D + j*D/2 + i] = X[h*D + 2i + j]

Nothing is computed: bytes are moved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from mergeflow.methods.views.protocols import Part, elements, numpy_dtype


class RotaryRows:
    """The view. One part, of the view's shape and dtype; `parameters["heads"]` divides its rows into even numbers."""

    def __init__(
        self, parts: Sequence[Part], parameters: Mapping[str, object], dtype: str, shape: tuple[int, ...]
    ) -> None:
        (self._part,) = parts
        self._dtype = numpy_dtype(dtype)
        self._half = shape[0] // cast(int, parameters["heads"]) // 2
        self._columns = int(np.prod(shape[1:], dtype=np.int64))

    def read(self, start: int, out: memoryview) -> None:
        wanted = np.frombuffer(out, self._dtype)
        for first, rows in _half_heads(start, start + len(wanted), self._half * self._columns):
            place = first - start
            wanted[place : place + len(rows)] = self._in_half(first, len(rows))

    def _in_half(self, start: int, count: int) -> NDArray[np.generic]:
        """`count` elements from flat index `start` on, all in one half of one head: every other row of the part."""
        half, within = divmod(start, self._half * self._columns)
        first_row, last_row = within // self._columns, -(-(within + count) // self._columns)
        # Row i of half j of head h is row 2i + j of the head in the part.
        head, j = divmod(half, 2)
        there = (head * 2 * self._half + 2 * first_row + j) * self._columns
        rows = last_row - first_row
        found = elements(self._part, there, (2 * rows - 1) * self._columns)
        skipped = within - first_row * self._columns
        if rows == 1:
            return found[skipped : skipped + count]
        padded = np.concatenate([found, found[: self._columns]]).reshape(rows, 2, self._columns)
        return padded[:, 0].reshape(-1)[skipped : skipped + count]


def _half_heads(start: int, end: int, size: int) -> Iterator[tuple[int, range]]:
    """The pieces of a range of elements that lie in one half head of `size` elements each: start, and its elements."""
    while start < end:
        stop = min(end, (start // size + 1) * size)
        yield start, range(start, stop)
        start = stop
