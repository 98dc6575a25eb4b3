"""The views `gguf`, `block_scaled` and `rotary_rows`: the numbers of the formats' definitions, for any ranges.

Formulas are written here a second time, an element after the other, as ggml's documentation of its blocks has them.
The expected blocks in ``tests/golden/gguf`` are from the format's own library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mergeflow.methods.ops import OPS
from mergeflow.methods.views.protocols import View, view_kernel

BLOCKS = np.load(Path(__file__).parents[1] / "golden" / "gguf" / "blocks.npz")
FORMATS = sorted(name.removesuffix(".raw") for name in BLOCKS.files if name.endswith(".raw"))
Array = NDArray[np.generic]
few = settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@dataclass
class Held:
    """An array as a part of a view; remembers the largest read."""

    array: Array
    largest: int = 0

    @property
    def dtype(self) -> str:
        return self.array.dtype.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def read(self, start: int, out: memoryview) -> None:
        flat = np.ascontiguousarray(self.array).reshape(-1).view(np.uint8)
        first = start * self.array.itemsize
        assert 0 <= first <= first + len(out) <= flat.size
        self.largest = max(self.largest, len(out))
        out[:] = flat[first : first + len(out)].data


def view(op: str, parts: list[Array], parameters: Mapping[str, object], dtype: str, shape: tuple[int, ...]) -> View:
    return view_kernel(OPS[op])([Held(part) for part in parts], parameters, dtype, shape)


def read(tensor: View, start: int, count: int, dtype: str = "float32") -> Array:
    out = np.full(count, 7, dtype)
    tensor.read(start, memoryview(out.view(np.uint8)))
    return out


def bits(values: Array) -> list[int]:
    return np.ascontiguousarray(values).reshape(-1).view(f"u{values.itemsize}").tolist()


def f16(block: bytes, place: int) -> np.float32:
    return np.frombuffer(block[place : place + 2], "<f2").astype(np.float32)[0]


def k_scale(block: bytes, i: int) -> tuple[int, int]:
    """s and t of group i of Q4_K and Q5_K."""
    q = block[4:16]
    if i < 4:
        return q[i] & 63, q[i + 4] & 63
    return (q[i + 4] & 15) | (q[i - 4] >> 6) << 4, (q[i + 4] >> 4) | (q[i] >> 6) << 4


def element(name: str, block: bytes, i: int) -> np.float32:
    """Element i of a block."""
    f = np.float32
    nibble = lambda start: block[start + i % 16] >> 4 * (i // 16) & 15  # noqa: E731
    if name == "Q8_0":
        return f16(block, 0) * f(np.int8(np.uint8(block[2 + i])))
    if name == "Q4_0":
        return f16(block, 0) * f(nibble(2) - 8)
    if name == "Q4_1":
        return f16(block, 0) * f(nibble(4)) + f16(block, 2)
    if name in ("Q5_0", "Q5_1"):
        start = 2 if name == "Q5_0" else 4
        high = int.from_bytes(block[start : start + 4], "little") >> i & 1
        q = nibble(start + 4) | high << 4
        return f16(block, 0) * f(q - 16) if name == "Q5_0" else f16(block, 0) * f(q) + f16(block, 2)
    half, group, within = i // 128, i % 128 // 32, i % 32
    if name == "Q2_K":
        q = block[16 + 32 * half + within] >> 2 * group & 3
        s = block[i // 16]
        return (f16(block, 80) * f(s & 15)) * f(q) - f16(block, 82) * f(s >> 4)
    if name == "Q3_K":
        q = (block[32 + 32 * half + within] >> 2 * group & 3) | (block[within] >> i // 32 & 1) << 2
        j = i // 16
        low = block[96 + j % 8] >> 4 * (j // 8) & 15
        s = low | (block[104 + j % 4] >> 2 * (j // 4) & 3) << 4
        return (f16(block, 108) * f(s - 32)) * f(q - 4)
    if name in ("Q4_K", "Q5_K"):
        s, t = k_scale(block, i // 32)
        start = 16 if name == "Q4_K" else 48
        q = block[start + 32 * (i // 64) + within] >> 4 * (i // 32 % 2) & 15
        q |= (block[16 + within] >> i // 32 & 1) << 4 if name == "Q5_K" else 0
        return (f16(block, 0) * f(s)) * f(q) - f16(block, 2) * f(t)
    low = block[64 * half + within + 32 * (group % 2)] >> 4 * (group // 2) & 15
    q = (low | (block[128 + 32 * half + within] >> 2 * group & 3) << 4) - 32
    return (f16(block, 208) * f(np.int8(np.uint8(block[192 + i // 16])))) * f(q)


class TestGguf:
    @staticmethod
    def of(name: str, raw: Array, expected: Array) -> View:
        return view("gguf", [raw.reshape(-1)], {"format": name}, "float32", expected.shape)

    @pytest.mark.parametrize("name", FORMATS)
    def test_the_numbers_are_those_of_the_formats_own_library(self, name: str) -> None:
        """Every format is decoded to the same float32 numbers, bit by bit, as by `gguf.quants`."""
        raw, expected = BLOCKS[f"{name}.raw"], BLOCKS[f"{name}.expected"]
        assert bits(read(self.of(name, raw, expected), 0, expected.size)) == bits(expected)

    @pytest.mark.parametrize("name", FORMATS)
    def test_the_numbers_are_those_of_the_definition(self, name: str) -> None:
        """Every element is the formula of its format, applied to it alone."""
        raw, expected = BLOCKS[f"{name}.raw"], BLOCKS[f"{name}.expected"]
        size = expected.shape[1]
        defined = [element(name, row.tobytes(), i) for row in raw for i in range(size)]
        assert bits(read(self.of(name, raw, expected), 0, expected.size)) == bits(np.array(defined, np.float32))

    @few
    @given(name=st.sampled_from(FORMATS), data=st.data())
    def test_any_range_is_that_part_of_the_whole(self, name: str, data: st.DataObject) -> None:
        """A range may begin and end inside blocks; its bytes do not depend on where it is cut."""
        raw, expected = BLOCKS[f"{name}.raw"], BLOCKS[f"{name}.expected"]
        start = data.draw(st.integers(0, expected.size))
        count = data.draw(st.integers(0, expected.size - start))
        found = read(self.of(name, raw, expected), start, count)
        assert bits(found) == bits(expected.reshape(-1)[start : start + count])

    def test_scales_that_are_no_numbers_warn_of_nothing(self) -> None:
        """An infinite scale gives infinite and undefined elements, and no warning from numpy."""
        raw = np.zeros((1, 34), np.uint8)
        raw[0, :2] = np.array([np.inf], "<f2").view(np.uint8)
        raw[0, 2] = 1
        found = read(view("gguf", [raw.reshape(-1)], {"format": "Q8_0"}, "float32", (32,)), 0, 32)
        assert np.isinf(found[0])
        assert np.isnan(found[1:]).all()

    def test_memory_is_that_of_a_few_blocks(self) -> None:
        """However long a read is, the part is asked for a few hundred kilobytes at a time."""
        part = Held(np.zeros(34 * 40_000, np.uint8))
        tensor = view_kernel(OPS["gguf"])([part], {"format": "Q8_0"}, "float32", (1_280_000,))
        read(tensor, 5, 1_279_990)
        assert part.largest < 200_000


FLOATS8: Mapping[str, Callable[[Array], Array]] = {
    "float8_e4m3fn": lambda raw: np.nan_to_num(raw.view(ml_dtypes.float8_e4m3fn).astype(np.float32)),
    "float8_e5m2": lambda raw: np.nan_to_num(raw.view(ml_dtypes.float8_e5m2).astype(np.float32), posinf=2, neginf=1),
}


def eight_bits(shape: tuple[int, ...], dtype: str, seed: int) -> Array:
    """Random finite numbers of 8 bits."""
    raw = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    if dtype == "int8":
        return raw.view(np.int8)
    return FLOATS8[dtype](raw).astype(getattr(ml_dtypes, dtype))


class TestBlockScaled:
    @few
    @given(
        shape=st.sampled_from([(1, 1), (5, 7), (128, 128), (130, 257), (3, 40, 20), (2, 300)]),
        block=st.sampled_from([(128, 128), (1, 16), (4, 4), (7, 1000), (1000, 1000)]),
        dtype=st.sampled_from(["float8_e4m3fn", "float8_e5m2", "int8"]),
        scales=st.sampled_from(["float32", "bfloat16", "float16"]),
        data=st.data(),
    )
    def test_each_element_has_the_scale_of_its_block(
        self, shape: tuple[int, ...], block: tuple[int, int], dtype: str, scales: str, data: st.DataObject
    ) -> None:
        """R[i, j] = X[i, j] * S[i // b0, j // b1], also at edges, for several matrices in one, and for any range."""
        *matrices, rows, columns = shape
        matrix = eight_bits(shape, dtype, rows)
        down, across = -(-rows // block[0]), -(-columns // block[1])
        drawn = np.random.default_rng(1).uniform(0.001, 2, (*matrices, down, across))
        scale = drawn.astype(getattr(ml_dtypes, scales, scales))
        expected = matrix.astype(np.float32)
        for index in np.ndindex(*shape):
            expected[index] *= np.float32(scale[(*index[:-2], index[-2] // block[0], index[-1] // block[1])])
        tensor = view("block_scaled", [matrix, scale], {"block": block}, "float32", shape)
        start = data.draw(st.integers(0, expected.size))
        count = data.draw(st.integers(0, expected.size - start))
        assert bits(read(tensor, start, count)) == bits(expected.reshape(-1)[start : start + count])

    @pytest.mark.parametrize("shape", [(3, 600_000), (700, 1000)])
    def test_long_reads_are_cut(self, shape: tuple[int, int]) -> None:
        """Rows longer than what is in work at a time, and many rows, come out whole; the part is read in pieces."""
        matrix = eight_bits(shape, "float8_e4m3fn", 2)
        scale = np.random.default_rng(3).uniform(0.1, 2, (-(-shape[0] // 128), -(-shape[1] // 128))).astype(np.float32)
        spread = scale.repeat(128, 0)[: shape[0]].repeat(128, 1)[:, : shape[1]]
        part = Held(matrix)
        tensor = view_kernel(OPS["block_scaled"])([part, Held(scale)], {"block": (128, 128)}, "float32", shape)
        size = matrix.size - 20
        expected = (matrix.astype(np.float32) * spread).reshape(-1)[9 : 9 + size]
        assert np.array_equal(read(tensor, 9, size), expected)
        assert part.largest <= 1 << 18


class TestRotaryRows:
    @few
    @given(
        heads=st.sampled_from([1, 2, 3]),
        half=st.sampled_from([1, 2, 4]),
        columns=st.sampled_from([(), (1,), (5,)]),
        dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
        data=st.data(),
    )
    def test_pairs_of_rows_become_halves_of_a_head(
        self, heads: int, half: int, columns: tuple[int, ...], dtype: str, data: st.DataObject
    ) -> None:
        """The view undoes what Llama's converter does: reshape (heads, 2, half), swap, reshape; of biases too."""
        shape = (heads * 2 * half, *columns)
        wanted = np.arange(int(np.prod(shape))).astype(getattr(ml_dtypes, dtype, dtype)).reshape(shape)
        stored = wanted.reshape(heads, 2, half, *columns).swapaxes(1, 2).reshape(shape)
        tensor = view("rotary_rows", [stored], {"heads": heads}, dtype, shape)
        start = data.draw(st.integers(0, wanted.size))
        count = data.draw(st.integers(0, wanted.size - start))
        found = np.empty(count, wanted.dtype)
        tensor.read(start, memoryview(found.view(np.uint8)))
        assert bits(found) == bits(wanted.reshape(-1)[start : start + count])
