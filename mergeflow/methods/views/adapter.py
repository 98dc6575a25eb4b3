"""adapter, dora: a tensor with low-rank adapters added to it, row-major, while it is read.

    adapter   R = W + sum_i s_i * D_i
              product      D = B A         B (out, r), A (r, in): a Linear's weight, or a convolution's with its kernel
              transposed   D = (B A)'      the same where the model keeps (in, out): Conv1D of GPT-2, embeddings
              plain        D = X           a vector that was trained beside a bias
              difference   D = X - W       a tensor that was trained as a whole
    dora      R = m * V / |V|, V = W + s * B A, |V| and m one number for each output of the module
              (Liu et al. 2024, arXiv:2402.09353): those are the rows of W, or its columns where it is transposed

A weight may have several million rows; what is held of an adapter is its smaller side alone (A of a Linear, B of an
embedding), and the other side is read with the rows. Norms of rows are taken as the rows pass; norms of columns need a
pass over the whole tensor, at the first read.

Everything is computed in float64 and rounded once, to the dtype of the view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
from numpy.typing import NDArray

from mergeflow.methods.views.low_rank import Factor, Float64, write_products
from mergeflow.methods.views.protocols import Part, elements, numpy_dtype, whole

# Elements computed at once: three buffers of them in float64 fit the second cache.
CHUNK = 1 << 15
LANES = 64


class Adapter:
    """The view ``adapter``. `terms` is a list of (form, scale); parts are W (with `base`), then those of each term."""

    def __init__(
        self, parts: Sequence[Part], parameters: Mapping[str, object], dtype: str, shape: tuple[int, ...]
    ) -> None:
        waiting = list(parts)
        self._dtype = numpy_dtype(dtype)
        self._columns = _columns(shape)
        self._base = waiting.pop(0) if parameters["base"] else None
        self._terms: list[tuple[float, _Term]] = []
        for form, scale in cast("Sequence[tuple[str, float]]", parameters["terms"]):
            if form in ("product", "transposed"):
                term: _Term = Product(waiting.pop(0), waiting.pop(0), shape, transposed=form == "transposed")
            else:
                term = _Plain(waiting.pop(0), self._base if form == "difference" else None)
            self._terms.append((float(scale), term))

    def read(self, start: int, out: memoryview) -> None:
        values = np.frombuffer(out, self._dtype)
        with np.errstate(all="ignore"):  # infinities and NaN in, infinities and NaN out
            deltas = [(scale, term.range(start, len(values))) for scale, term in self._terms]
            for at in range(0, len(values), CHUNK):
                count = min(CHUNK, len(values) - at)
                total = np.zeros(count) if self._base is None else widened(self._base, start + at, count)
                for scale, delta in deltas:
                    term = delta(start + at, count)
                    term *= scale
                    total += term
                values[at : at + count] = rounded(total, self._dtype)


class Dora:
    """The view ``dora``: parts W, A, B, m. The outputs are W's columns when `by_columns`."""

    def __init__(
        self, parts: Sequence[Part], parameters: Mapping[str, object], dtype: str, shape: tuple[int, ...]
    ) -> None:
        self._base, a, b, magnitude = parts
        self._dtype = numpy_dtype(dtype)
        self._rows, self._columns = shape[0], _columns(shape)
        self._scale = float(cast(float, parameters["scale"]))
        self._by_columns = bool(parameters["by_columns"])
        self._product = Product(a, b, shape, transposed=bool(parameters["transposed"]))
        self._magnitude = whole(magnitude).astype(np.float64).reshape(-1)

    def read(self, start: int, out: memoryview) -> None:
        values = np.frombuffer(out, self._dtype)
        end = start + len(values)
        if not len(values):
            return
        with np.errstate(all="ignore"):
            for first, block in self._adapted(start // self._columns, -(-end // self._columns)):
                gains = self._column_gains if self._by_columns else self._row_gains(first, block)
                block *= gains
                begin = first * self._columns
                low, high = max(start, begin), min(end, begin + block.size)
                piece = block.reshape(-1)[low - begin : high - begin]
                values[low - start : high - start] = rounded(piece, self._dtype)

    def _adapted(self, first: int, last: int) -> Iterator[tuple[int, Float64]]:
        """V of rows `first` to `last` (one behind), some rows at a time: (first of them, (rows, columns))."""
        at_once = max(1, CHUNK // self._columns)
        for row in range(first, last, at_once):
            rows = min(at_once, last - row)
            start, count = row * self._columns, rows * self._columns
            block = self._product.range(start, count)(start, count)
            block *= self._scale
            yield row, (widened(self._base, start, count) + block).reshape(rows, self._columns)

    def _row_gains(self, first: int, block: Float64) -> Float64:
        norms = np.sqrt(_sums_of_rows(block * block))
        gains: Float64 = self._magnitude[first : first + len(block)] / norms
        return gains[:, None]

    @cached_property
    def _column_gains(self) -> Float64:
        squares = np.zeros(self._columns)
        for _, block in self._adapted(0, self._rows):
            for row in block:
                squares += row * row
        gains: Float64 = self._magnitude / np.sqrt(squares)
        return gains


# The elements of a term from a flat index on, as many as asked, within the range that was announced.
_Read = Callable[[int, int], Float64]


@dataclass(frozen=True)
class _Plain:
    """A tensor of the shape of the base, or its difference to it."""

    part: Part
    base: Part | None

    def range(self, start: int, count: int) -> _Read:
        return self._elements

    def _elements(self, start: int, count: int) -> Float64:
        found = widened(self.part, start, count)
        if self.base is not None:
            found -= widened(self.base, start, count)
        return found


class Product:
    """B A (or its transpose), in the shape of the tensor it is added to: rows of one factor, all of the other."""

    def __init__(self, a: Part, b: Part, shape: tuple[int, ...], *, transposed: bool) -> None:
        self._rank = a.shape[0]
        self._columns = _columns(shape)
        self._transposed = transposed
        self._by_rows = a if transposed else b
        self._factor = np.dtype(np.float64 if "float64" in (a.dtype, b.dtype) else np.float32)
        held = whole(b if transposed else a).astype(self._factor)
        held = held.reshape(self._columns, self._rank).T if transposed else held.reshape(self._rank, self._columns)
        self._held: Factor = np.ascontiguousarray(held)

    def range(self, start: int, count: int) -> _Read:
        """Reads the rows of a range, and gives what computes the elements in it."""
        first = start // self._columns
        rows = self._read_rows(first, -(-(start + count) // self._columns) - first)

        def compute(start: int, count: int) -> Float64:
            row, column = divmod(start, self._columns)
            touched = rows[row - first : -(-(start + count) // self._columns) - first]
            out = np.empty(count)
            write_products(out, touched, self._held, column)
            return out

        return compute

    def _read_rows(self, first: int, count: int) -> Factor:
        """Rows of the factor that has one for each row of the tensor: (count, rank)."""
        if not self._transposed:
            found = elements(self._by_rows, first * self._rank, count * self._rank)
            return found.astype(self._factor).reshape(count, self._rank)
        length = self._by_rows.shape[1]
        columns = [elements(self._by_rows, k * length + first, count) for k in range(self._rank)]
        return np.ascontiguousarray(np.stack(columns, axis=1).astype(self._factor))


_Term = Product | _Plain


def widened(part: Part, start: int, count: int) -> Float64:
    """A range of a part in float64, which holds every number of every format."""
    found = elements(part, start, count)
    if part.dtype == "bfloat16":  # what ml_dtypes does, in a third of the time
        found = (found.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return found.astype(np.float64)


def rounded(values: Float64, dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    """Values in the dtype of the view. There is one NaN: which one a sum gives is the processor's affair."""
    found = values.astype(dtype)
    wrong = np.isnan(found)
    if wrong.any():
        found[wrong] = np.nan
    return found


def _sums_of_rows(values: Float64) -> Float64:
    """The sum of each row: (rows,). Each of `LANES` lanes adds its numbers in rising order, then halves are added."""
    rows, columns = values.shape
    lanes = np.zeros((rows, LANES))
    for at in range(0, columns, LANES):
        piece = values[:, at : at + LANES]
        lanes[:, : piece.shape[1]] += piece
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


def _columns(shape: tuple[int, ...]) -> int:
    """Numbers behind each index of the first axis."""
    columns = 1
    for length in shape[1:]:
        columns *= length
    return columns
