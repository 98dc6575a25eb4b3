"""The view `vocabulary`: rows gathered from several matrices, with zeros, means and padding."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mergeflow.methods.ops import OPS
from mergeflow.methods.views.runs import MEANS, PADDING, ZEROS
from mergeflow.methods.views.vocabulary import Vocabulary

Array = NDArray[np.generic]
# Rows 0-2 from the first part, 1-2 from the second, a row of zeros, two means, two rows of padding: 10 rows.
RUNS = [0, 0, 3, 1, 1, 2, ZEROS, 0, 1, MEANS, 0, 2, PADDING, 0, 2]
MEAN_PAIRS = [[0, 3, 1, 0], [1, 3, 0, 1, 1, 2]]
PARAMETERS: dict[str, object] = {"runs": RUNS, "means": MEAN_PAIRS, "tokens": 8}


class Stored:
    """A part that lies in memory."""

    def __init__(self, values: Array) -> None:
        self.values = values
        self.dtype = values.dtype.name
        self.shape = values.shape

    def read(self, start: int, out: memoryview) -> None:
        flat = np.ascontiguousarray(self.values).reshape(-1)
        out[:] = flat[start : start + len(out) // flat.itemsize].view("u1").data


def parts(width: tuple[int, ...], dtype: object = np.float32) -> list[Array]:
    generator = np.random.default_rng(3)
    return [generator.normal(size=(4, *width)).astype(np.float32).astype(dtype) for _ in range(2)]  # type: ignore[call-overload]


def read(view: Vocabulary, dtype: str, size: int, cuts: list[int]) -> bytes:
    itemsize = np.dtype(dtype).itemsize
    found = bytearray(size * itemsize)
    ends = sorted({0, size, *cuts})
    for start, end in reversed(list(pairwise(ends))):
        view.read(start, memoryview(found)[start * itemsize : end * itemsize])
    return bytes(found)


def reference(first: Array, second: Array) -> NDArray[np.float32]:
    """The same rows in plain numpy: (10, ...)."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    rows = [a[0], a[1], a[2], b[1], b[2], 0 * a[0], (a[3] + b[0]) / 2, (b[3] + a[1] + b[2]) / 3]
    rounded = np.stack(rows).astype(np.float32)
    padding = (rounded.astype(np.float64).sum(axis=0) / 8).astype(np.float32)
    return np.concatenate([rounded, padding[None], padding[None]])


@pytest.mark.parametrize("width", [(), (1,), (5,), (2, 3)])
def test_rows_are_gathered_averaged_and_padded(width: tuple[int, ...]) -> None:
    """Every kind of run gives what its description says, for biases, matrices and more axes."""
    first, second = parts(width)
    view = Vocabulary([Stored(first), Stored(second)], PARAMETERS, "float32", (10, *width))
    size = 10 * int(np.prod(width, dtype=int))
    found = np.frombuffer(read(view, "float32", size, []), np.float32).reshape(10, *width)
    np.testing.assert_allclose(found, reference(first, second), rtol=1e-6, atol=1e-7)


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, 50), max_size=6))
def test_the_bytes_do_not_depend_on_how_ranges_are_cut(cuts: list[int]) -> None:
    """Ranges may begin and end anywhere, inside rows too, and be read in any order."""
    stored = [Stored(part) for part in parts((5,))]

    def view() -> Vocabulary:
        return Vocabulary(stored, PARAMETERS, "float32", (10, 5))

    assert read(view(), "float32", 50, cuts) == read(view(), "float32", 50, [])


def test_rows_of_half_precision_are_copied_bit_by_bit() -> None:
    """Nothing is rounded where nothing is computed, and narrower parts are widened exactly."""
    first, second = parts((3,), ml_dtypes.bfloat16)
    runs: dict[str, object] = {"runs": [1, 0, 4, 0, 2, 1], "means": [], "tokens": 0}
    narrow = Vocabulary([Stored(first), Stored(second)], runs, "bfloat16", (5, 3))
    wide = Vocabulary([Stored(first), Stored(second)], runs, "float32", (5, 3))
    expected = np.concatenate([second, first[2:3]])
    assert read(narrow, "bfloat16", 15, [4]) == expected.tobytes()
    assert read(wide, "float32", 15, [7]) == expected.astype(np.float32).tobytes()


def test_a_flat_row_counts_as_a_column() -> None:
    """A bias of shape (1, V) has V rows of one element."""
    first, second = (part.reshape(1, 4) for part in parts(()))
    view = Vocabulary([Stored(first), Stored(second)], PARAMETERS, "float32", (1, 10))
    found = np.frombuffer(read(view, "float32", 10, []), np.float32)
    np.testing.assert_allclose(found, reference(first[0], second[0]), rtol=1e-6)


def test_the_bytes_are_those_of_the_version() -> None:
    """Whoever changes the bytes of the view bumps its version."""
    values = (np.arange(40, dtype=np.float64).reshape(8, 5) * 0.37 % 1.7 - 0.8).astype(np.float32)
    view = Vocabulary([Stored(values[:4]), Stored(values[4:])], PARAMETERS, "float32", (10, 5))
    digest = hashlib.sha256(read(view, "float32", 50, [])).hexdigest()[:16]
    assert (OPS["vocabulary"].version, digest) == (1, "301b27c3034907fb")
