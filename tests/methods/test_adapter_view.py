"""The views `adapter` and `dora`: dense results in float64, the same bytes for any ranges and on both ways to compute."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeflow.methods.native.library import library
from mergeflow.methods.ops import OPS
from mergeflow.methods.views import low_rank
from mergeflow.methods.views.low_rank import pieces, write_products
from mergeflow.methods.views.protocols import view_kernel

Array = np.ndarray[Any, Any]


class Part:
    """An array as a part of a view."""

    def __init__(self, array: Array) -> None:
        self._array = np.ascontiguousarray(array)
        self.dtype = array.dtype.name
        self.shape = array.shape

    def read(self, start: int, out: memoryview) -> None:
        count = len(out) // self._array.dtype.itemsize
        out[:] = self._array.reshape(-1)[start : start + count].view(np.uint8).data


def read(
    op: str, arrays: Sequence[Array], parameters: Mapping[str, object], shape: tuple[int, ...], cuts: Sequence[int] = ()
) -> Array:
    """All of a view in float32, read in the ranges between `cuts`."""
    view = view_kernel(OPS[op])([Part(array) for array in arrays], parameters, "float32", shape)
    out = np.empty(int(np.prod(shape)), np.float32)
    edges = [0, *sorted(cuts), len(out)]
    for start, end in pairwise(edges):
        view.read(start, memoryview(out[start:end].view(np.uint8)))
    return out.reshape(shape)


def draw(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_a_product_is_added_as_in_float64() -> None:
    """R = W + s B A, computed in float64 and rounded once, with W in bfloat16."""
    w, a, b = draw(0, 30, 50).astype(ml_dtypes.bfloat16), draw(1, 7, 50), draw(2, 30, 7)
    dense = w.astype(np.float64) + 0.3 * (b.astype(np.float64) @ a.astype(np.float64))
    found = read("adapter", [w, a, b], {"base": True, "terms": [["product", 0.3]]}, (30, 50))
    np.testing.assert_allclose(found, dense, rtol=1e-7, atol=1e-12)


def test_every_form_of_a_term() -> None:
    """A turned product, a vector beside a bias, a tensor in place of the base's, and several terms at once."""
    w, a, b, x = draw(0, 6, 5), draw(1, 3, 6), draw(2, 5, 3), draw(3, 6, 5)
    terms = [["transposed", 0.5], ["plain", 2.0], ["difference", -0.25]]
    found = read("adapter", [w, a, b, x, x], {"base": True, "terms": terms}, (6, 5))
    wide = [array.astype(np.float64) for array in (w, a, b, x)]
    dense = wide[0] + 0.5 * (wide[2] @ wide[1]).T + 2 * wide[3] - 0.25 * (wide[3] - wide[0])
    np.testing.assert_allclose(found, dense, rtol=1e-6, atol=1e-6)
    alone = read("adapter", [a, b], {"base": False, "terms": [["transposed", 0.5]]}, (6, 5))
    np.testing.assert_allclose(alone, 0.5 * (wide[2] @ wide[1]).T, rtol=1e-7, atol=1e-12)


def test_a_convolution_takes_the_product_in_its_own_shape() -> None:
    """A (r, in, h, w) and B (out, r, 1, 1) make (out, in, h, w)."""
    w, a, b = draw(0, 4, 3, 2, 2), draw(1, 2, 3, 2, 2), draw(2, 4, 2, 1, 1)
    found = read("adapter", [w, a, b], {"base": True, "terms": [["product", 1.0]]}, (4, 3, 2, 2))
    dense = w.astype(np.float64) + (b.reshape(4, 2).astype(float) @ a.reshape(2, 12).astype(float)).reshape(w.shape)
    np.testing.assert_allclose(found, dense, rtol=1e-6)


@pytest.mark.parametrize("turned", [False, True])
def test_dora_scales_each_output(turned: bool) -> None:
    """R = m V / |V|: the outputs are rows, or the columns of a tensor that is kept turned."""
    w, m = draw(0, 9, 200), np.abs(draw(3, 200 if turned else 9))
    a, b = (draw(1, 2, 9), draw(2, 200, 2)) if turned else (draw(1, 2, 200), draw(2, 9, 2))
    product = b.astype(np.float64) @ a.astype(np.float64)
    v = w.astype(np.float64) + 0.5 * (product.T if turned else product)
    dense = m * v / np.linalg.norm(v, axis=0) if turned else m[:, None] * v / np.linalg.norm(v, axis=1)[:, None]
    parameters = {"scale": 0.5, "transposed": turned, "by_columns": turned}
    np.testing.assert_allclose(read("dora", [w, a, b, m], parameters, (9, 200)), dense, rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), rows=st.integers(1, 9), columns=st.integers(1, 70), rank=st.integers(1, 9), turned=st.booleans())
def test_bytes_do_not_depend_on_the_ranges(
    data: st.DataObject, rows: int, columns: int, rank: int, turned: bool
) -> None:
    """However the elements are cut into ranges, each is the same to the last bit; and so it is without the library."""
    shape = (rows, columns)
    a, b = (draw(1, rank, rows), draw(2, columns, rank)) if turned else (draw(1, rank, columns), draw(2, rows, rank))
    w, m = draw(0, *shape), draw(3, columns if turned else rows)
    cuts = data.draw(st.lists(st.integers(0, rows * columns), max_size=4))
    form = "transposed" if turned else "product"
    cases: list[tuple[str, list[Array], dict[str, object]]] = [
        ("adapter", [w, a, b], {"base": True, "terms": [[form, 0.7]]}),
        ("dora", [w, a, b, m], {"scale": 0.7, "transposed": turned, "by_columns": turned}),
    ]
    for op, arrays, parameters in cases:
        whole = read(op, arrays, parameters, shape)
        assert read(op, arrays, parameters, shape, cuts).tobytes() == whole.tobytes()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(low_rank, "library", lambda: None)
            assert read(op, arrays, parameters, shape, cuts).tobytes() == whole.tobytes()


@pytest.mark.skipif(library() is None, reason="no native library here")
@pytest.mark.parametrize("columns", [1, 511, 512, 1100])
def test_the_library_gives_numpys_bytes(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stripes, pairs of rows and groups of four ranks change no bit, also of infinities and NaN."""
    left, right = draw(1, 5, 11), draw(2, 11, columns)
    left[1, 3], right[4, 0], left[2, 2] = np.inf, np.nan, -0.0
    first, count = columns // 2, 4 * columns
    native, plain = np.empty(count), np.empty(count)
    write_products(native, left, right, first)
    monkeypatch.setattr(low_rank, "library", lambda: None)
    with np.errstate(all="ignore"):
        write_products(plain, left, right, first)
    np.testing.assert_array_equal(native, plain)


def test_a_range_falls_into_rectangles() -> None:
    """The rest of a row, whole rows, the beginning of a row; any of them may be missing."""
    assert list(pieces(2, 10, 4)) == [(0, 1, 2, 2, 0), (1, 2, 0, 4, 2)]
    assert list(pieces(0, 9, 4)) == [(0, 2, 0, 4, 0), (2, 1, 0, 1, 8)]
    assert list(pieces(1, 2, 4)) == [(0, 1, 1, 2, 0)]


def test_not_a_number_is_one_number() -> None:
    """Infinities and NaN of the inputs come out, without a warning, and every NaN has the same bits."""
    w, a, b = draw(0, 3, 4), draw(1, 1, 4), draw(2, 3, 1)
    w[0, 0], a[0, 1], b[2, 0] = -np.nan, np.inf, 0
    found = read("adapter", [w, a, b], {"base": True, "terms": [["product", 1.0]]}, (3, 4))
    assert np.isnan(found[0, 0])
    assert np.isnan(found[2, 1])
    assert np.isinf(found[0, 1])
    assert set(found[np.isnan(found)].view(np.uint32)) == {0x7FC00000}


def test_the_bytes_are_those_of_the_version() -> None:
    """The views compute the bytes that their versions stand for."""
    w, a, b, m = draw(0, 40, 90), draw(1, 5, 90), draw(2, 40, 5), np.abs(draw(3, 40))
    plain = read("adapter", [w, a, b], {"base": True, "terms": [["product", 0.3]]}, (40, 90))
    dora = read("dora", [w, a, b, m], {"scale": 0.3, "transposed": False, "by_columns": False}, (40, 90))
    found = [hashlib.sha256(array.tobytes()).hexdigest()[:16] for array in (plain, dora)]
    assert [OPS["adapter"].version, OPS["dora"].version, *found] == [1, 1, "769de949d6e2d214", "04c611f1b5fe38d2"]
