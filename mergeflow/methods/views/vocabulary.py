"""vocabulary: rows of several matrices, gathered into the order of another vocabulary.

The rows of the new matrix, from the first on, are runs, three integers each:

    (i, r, n)    i >= 0: rows r, r+1, ... r+n-1 of input i, as they are
    (-1, 0, n)   n rows of zeros
    (-2, m, n)   rows m, m+1, ... of `means`: each the mean of the listed (input, row) pairs
    (-3, 0, n)   n times the mean of the first `tokens` rows of the new matrix: rows that no token has

A row is what a tensor holds behind its first axis: of a matrix (V, d) it has d elements, of a bias (V,) one. (1, V)
counts as (V,).

Means are sums in float64, one row after another in the order listed, divided and rounded once. The mean of the new
matrix needs all of it, so it is read once more, when the first such row is asked for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import cast

import numpy as np
from numpy.typing import NDArray

from mergeflow.methods.views.protocols import Part, elements, numpy_dtype
from mergeflow.methods.views.runs import MEANS, ZEROS

Floats = NDArray[np.float64]
# Elements that are read at once for the mean of the whole matrix; what is summed does not depend on it.
_BLOCK = 1 << 18


class Vocabulary:
    """The view.

    Args:
        parameters: ``runs`` and ``means``, lists of integers (a mean is a flat list of pairs), and ``tokens``.
    """

    def __init__(
        self, parts: Sequence[Part], parameters: Mapping[str, object], dtype: str, shape: tuple[int, ...]
    ) -> None:
        runs = cast(Sequence[int], parameters["runs"])
        self._runs = [(runs[k], runs[k + 1], runs[k + 2]) for k in range(0, len(runs), 3)]
        self._starts = [0, *accumulate(count for _, _, count in self._runs)]
        self._means = cast(Sequence[Sequence[int]], parameters["means"])
        self._tokens = cast(int, parameters["tokens"])
        self._parts = parts
        self._dtype = numpy_dtype(dtype)
        self._rows, self._width = _rows_and_width(shape)
        self._padding: NDArray[np.generic] | None = None

    def read(self, start: int, out: memoryview) -> None:
        """Fill `out` with the elements from flat index `start` on; ranges may begin and end inside of a row."""
        itemsize = self._dtype.itemsize
        end = start + len(out) // itemsize
        index = bisect_right(self._starts, start // max(self._width, 1)) - 1
        while start < end:
            first, last = self._starts[index] * self._width, self._starts[index + 1] * self._width
            stop = min(end, last)
            if stop > start:
                piece = out[: (stop - start) * itemsize]
                self._read_run(self._runs[index], start - first, stop - start, piece)
                out, start = out[len(piece) :], stop
            index += 1

    def _read_run(self, run: tuple[int, int, int], offset: int, count: int, out: memoryview) -> None:
        """Fill `out` with `count` elements of one run, from its element `offset` on."""
        kind, place, _ = run
        if kind >= 0:
            part = self._parts[kind]
            first = place * self._width + offset
            if numpy_dtype(part.dtype) == self._dtype:
                part.read(first, out)
            else:
                out[:] = _bytes(elements(part, first, count).astype(self._dtype))
        elif kind == ZEROS:
            out[:] = bytes(len(out))
        else:
            self._read_rows(kind, place, offset, count, out)

    def _read_rows(self, kind: int, place: int, offset: int, count: int, out: memoryview) -> None:
        """Elements of rows that are computed, row by row."""
        itemsize = self._dtype.itemsize
        done = 0
        while done < count:
            row, column = divmod(offset + done, self._width)
            values = self._mean(place + row) if kind == MEANS else self._mean_of_tokens()
            some = values[column : column + count - done]
            out[done * itemsize : (done + len(some)) * itemsize] = _bytes(some)
            done += len(some)

    def _mean(self, number: int) -> NDArray[np.generic]:
        """Mean `number`: (d,), in the view's dtype."""
        pairs = self._means[number]
        total: Floats = np.zeros(self._width)
        for part, row in zip(pairs[::2], pairs[1::2], strict=True):
            total += elements(self._parts[part], row * self._width, self._width).astype(np.float64)
        return (total / (len(pairs) // 2)).astype(self._dtype)

    def _mean_of_tokens(self) -> NDArray[np.generic]:
        """The mean of the rows that tokens have: (d,), in the view's dtype."""
        if self._padding is None:
            rows = max(1, _BLOCK // max(1, self._width))
            total: Floats = np.zeros(self._width)
            for first in range(0, self._tokens, rows):
                count = min(rows, self._tokens - first)
                block = np.empty(count * self._width, self._dtype)
                self.read(first * self._width, _bytes(block))
                _add_rows(total, block.reshape(count, self._width).astype(np.float64))
            self._padding = (total / max(1, self._tokens)).astype(self._dtype)
        return self._padding


def _add_rows(total: Floats, block: Floats) -> None:
    """Add the rows of a block (n, d) to `total` (d,), one after the other: numpy's own sums have an order of theirs."""
    if len(total) == 1:
        total[0] = np.cumsum(np.concatenate([total, block[:, 0]]))[-1]
        return
    for row in block:
        total += row


def _rows_and_width(shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) == 2 and shape[0] == 1:
        return shape[1], 1
    width = 1
    for length in shape[1:]:
        width *= length
    return shape[0], width


def _bytes(values: NDArray[np.generic]) -> memoryview:
    """The bytes of an array, to read from or to write to."""
    return values.view("u1").data
