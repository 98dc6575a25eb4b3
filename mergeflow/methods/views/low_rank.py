"""Products of two narrow matrices, by flat ranges: P[i, j] = sum over k of L[i, k] * M[k, j], in float64.

The sum runs over k from 0 on and every operation is rounded by itself, so an element's bytes depend on its row of L and
its column of M alone, not on where a range begins, nor on who computes it: the native library (where both matrices fit
float32), or numpy. `M` is held, in float64 or, for the native library, in float32; rows of L come with each call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mergeflow.methods.native.library import library

Float64 = NDArray[np.float64]
Factor = NDArray[np.float32] | NDArray[np.float64]


def write_products(out: Float64, left: Factor, right: Factor, first_column: int) -> None:
    """Write the products of a flat range to `out`: (n,).

    Args:
        left: the rows of L that the range touches: (rows, rank).
        right: M: (rank, columns), of the dtype of `left`.
        first_column: where in its first row the range begins.
    """
    native = library()
    rank, columns = right.shape
    if native is not None and left.dtype == right.dtype == np.float32:
        by_rows, by_columns = np.ascontiguousarray(left), np.ascontiguousarray(right)
        native.mergeflow_products(_at(out), _at(by_rows), _at(by_columns), rank, columns, first_column, len(out))
        return
    for row, rows, column, width, start in pieces(first_column, len(out), columns):
        piece = out[start : start + rows * width].reshape(rows, width)
        piece[:] = 0
        for k in range(rank):
            left_k = left[row : row + rows, k, None].astype(np.float64)
            piece += left_k * right[k, column : column + width].astype(np.float64)


def pieces(first_column: int, count: int, columns: int) -> Iterator[tuple[int, int, int, int, int]]:
    """A flat range as rectangles: the rest of its first row, whole rows, the beginning of its last.

    Gives (first row, rows, first column, columns, place in the range), rows counted from the range's first.
    """
    done = row = 0
    if first_column:
        done = min(columns - first_column, count)
        yield 0, 1, first_column, done, 0
        row = 1
    whole = (count - done) // columns
    if whole:
        yield row, whole, 0, columns, done
    rest = done + whole * columns
    if rest < count:
        yield row + whole, 1, 0, count - rest, rest


def _at(array: NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
