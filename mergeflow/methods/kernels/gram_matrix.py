"""What a Gram matrix tells of linear combinations: dot products and lengths, without looking at a tensor again.

A vector of the span is k coefficients. Each number here is a sum of products of those with the entries of the matrix,
added exactly and rounded once (`math.fsum`), so that the order in which models are listed changes no coefficient.

An entry carries a relative error of some 1e-15, and a length is the square root of a sum of entries: below NEGLIGIBLE
times the lengths of what was added, a length is what rounding left, and says nothing of a direction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice

from mergeflow.methods.kernels.protocols import Record

Matrix = tuple[tuple[float, ...], ...]

NEGLIGIBLE = 1e-7


def entries(record: Record) -> tuple[float, ...]:
    """The dot products in a record of `gram`: those of i <= j, row by row."""
    gram = record["gram"]
    assert isinstance(gram, Sequence)
    return tuple(gram)


def vectors(upper: Sequence[float]) -> int:
    """How many vectors have this many dot products."""
    return (math.isqrt(8 * len(upper) + 1) - 1) // 2


def matrix(upper: Sequence[float]) -> Matrix | None:
    """The whole matrix (k, k) of the entries for i <= j, row by row; None when one of them is not finite."""
    if not all(math.isfinite(entry) for entry in upper):
        return None
    count = vectors(upper)
    rest = iter(upper)
    rows = [list(islice(rest, count - i)) for i in range(count)]
    return tuple(tuple(rows[min(i, j)][abs(i - j)] for j in range(count)) for i in range(count))


def lengths(gram: Matrix) -> tuple[float, ...]:
    """The length of each vector."""
    return tuple(math.sqrt(row[i]) for i, row in enumerate(gram))


def directions(gram: Matrix, norms: Sequence[float]) -> Matrix:
    """The Gram matrix of the vectors divided by `norms`, none of them zero."""
    return tuple(tuple(entry / (norms[i] * norms[j]) for j, entry in enumerate(row)) for i, row in enumerate(gram))


def products(gram: Matrix, combination: Sequence[float]) -> list[float]:
    """The dot product of each vector with a combination of them."""
    return [math.fsum(entry * share for entry, share in zip(row, combination, strict=True)) for row in gram]


def length(gram: Matrix, combination: Sequence[float]) -> float:
    """The length of a combination of the vectors."""
    square = math.fsum(
        left * right * entry
        for left, row in zip(combination, gram, strict=True)
        for right, entry in zip(combination, row, strict=True)
    )
    return math.sqrt(max(0.0, square))
