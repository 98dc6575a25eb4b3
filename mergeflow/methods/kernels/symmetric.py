"""Eigenvalues and eigenvectors of a small symmetric matrix, the same to the last bit on every machine.

Jacobi's method: rotate two rows and columns so that the entry between them vanishes, until all have. Pairs that share
no row are rotated together, which makes it a few operations on arrays. Every one is an addition, a multiplication, a
division or a square root, rounded by itself as IEEE 754 says; a library's solver (LAPACK) rounds as its blocks fall.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Places = NDArray[np.intp]

# Entries off the diagonal that are below this share of the matrix's norm are zero for all purposes.
NEGLIGIBLE = 1e-15
MOST_SWEEPS = 30


def eigen(matrix: Matrix) -> tuple[Matrix, Matrix]:
    """Eigenvalues (n,) in falling order and eigenvectors (n, n), one a column, of a finite symmetric matrix (n, n)."""
    count = len(matrix)
    work = np.zeros((count + count % 2,) * 2)  # even, so that all rows have a partner
    work[:count, :count] = matrix
    vectors = np.eye(len(work))  # one a row, so that rotations touch whole rows
    bound = NEGLIGIBLE * float(np.abs(matrix).max(initial=0.0))

    for _ in range(MOST_SWEEPS):
        if float(np.abs(work - np.diag(np.diag(work))).max(initial=0.0)) <= bound:
            break
        for first, second in _rounds(len(work)):
            _rotate(work, vectors, first, second)

    values = np.diag(work)[:count]
    order = np.argsort(-values, kind="stable")
    return values[order], vectors[:count, :count][order].T.copy()


def _rounds(count: int) -> Iterator[tuple[Places, Places]]:
    """Every pair of rows once, in rounds of pairs that share no row: a tournament in which the first stays seated."""
    seats = np.arange(count)
    for _ in range(count - 1):
        yield seats[: count // 2], seats[count // 2 :][::-1]
        seats = np.concatenate([seats[:1], seats[-1:], seats[1:-1]])


def _rotate(work: Matrix, vectors: Matrix, first: Places, second: Places) -> None:
    between = work[first, second]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = (work[second, second] - work[first, first]) / (2.0 * between)
        tangent = np.copysign(1.0, ratio) / (np.abs(ratio) + np.sqrt(ratio * ratio + 1.0))
    tangent = np.where(between == 0.0, 0.0, tangent)
    cosine = (1.0 / np.sqrt(tangent * tangent + 1.0))[:, None]
    sine = tangent[:, None] * cosine

    _rotate_rows(work, first, second, cosine, sine)
    work[:] = work.T.copy()  # a copy is faster than rotating columns
    _rotate_rows(work, first, second, cosine, sine)
    _rotate_rows(vectors, first, second, cosine, sine)
    work[first, second] = work[second, first] = 0.0


def _rotate_rows(rows: Matrix, first: Places, second: Places, cosine: Matrix, sine: Matrix) -> None:
    upper, lower = rows[first], rows[second]
    rows[first] = cosine * upper - sine * lower
    rows[second] = sine * upper + cosine * lower
