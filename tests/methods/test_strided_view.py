"""The view that reads a tensor with strides."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from mergeflow.methods.ops import OPS
from mergeflow.methods.views.protocols import View, view_kernel
from mergeflow.methods.views.strided import AHEAD_BYTES, PIECE_BYTES


class Memory:
    """Numbers in memory as a part of a view; `reads` are the sizes of what was read."""

    def __init__(self, values: NDArray[np.generic]) -> None:
        self.dtype, self.shape = str(values.dtype), values.shape
        self.reads: list[int] = []
        self._values = values

    def read(self, start: int, out: memoryview) -> None:
        itemsize = self._values.itemsize
        assert 0 <= start <= start + len(out) // itemsize <= self._values.size
        self.reads.append(len(out))
        out[:] = self._values[start : start + len(out) // itemsize].view(np.uint8).data


def strided(part: Memory, shape: tuple[int, ...], strides: tuple[int, ...]) -> View:
    return view_kernel(OPS["strided"])([part], {"strides": strides}, part.dtype, shape)


def read(view: View, start: int, count: int, dtype: str = "float32") -> NDArray[np.generic]:
    found = np.empty(count, dtype)
    view.read(start, memoryview(found.view(np.uint8)))
    return found


def test_a_transposed_matrix_is_read_in_few_pieces() -> None:
    """Whole rows of it are read and turned in memory: no piece is large, and each byte comes once for a range."""
    rows, columns = 3000, 2000
    part = Memory(np.arange(rows * columns, dtype=np.float32))
    expected = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns).T.reshape(-1)
    view = strided(part, (columns, rows), (1, columns))
    np.testing.assert_array_equal(read(view, 12_345, 200_000), expected[12_345:212_345])
    assert max(part.reads) <= PIECE_BYTES
    assert sum(part.reads) <= 3 * 24_000_000  # part of a row, whole rows, part of a row
    assert len(part.reads) <= 3 * 8


def test_a_transposed_matrix_read_from_end_to_end_costs_a_pass_for_each_band() -> None:
    """Small blocks one after the other: some four reads for each megabyte of the source, and of each band of rows."""
    rows, columns, block = 5504, 2048, 1 << 15
    part = Memory(np.arange(rows * columns, dtype=np.uint32).astype(np.uint16))
    view = strided(part, (columns, rows), (1, columns))
    found = [read(view, start, block, "uint16") for start in range(0, rows * columns, block)]
    np.testing.assert_array_equal(
        np.concatenate(found), np.arange(rows * columns).reshape(rows, columns).T.reshape(-1) % 65536
    )
    bands = -(-2 * rows * columns // AHEAD_BYTES)
    assert sum(part.reads) <= 2 * rows * columns * (3 * bands + 3)
    assert len(part.reads) <= 100


def test_whoever_reads_on_is_read_ahead_for() -> None:
    """The range after the last one brings many more elements, which the next ranges are cut from."""
    rows, columns = 3000, 2000
    part = Memory(np.arange(rows * columns, dtype=np.float32))
    expected = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns).T.reshape(-1)
    view = strided(part, (columns, rows), (1, columns))
    read(view, 12_345, 200_000)
    np.testing.assert_array_equal(read(view, 212_345, 200_000), expected[212_345:412_345])
    count = len(part.reads)
    np.testing.assert_array_equal(read(view, 412_345, 200_000), expected[412_345:612_345])
    assert len(part.reads) == count
    np.testing.assert_array_equal(read(view, 3, 10), expected[3:13])
    np.testing.assert_array_equal(read(view, 1_200_000, 200_000), expected[1_200_000:1_400_000])
    assert max(part.reads) <= PIECE_BYTES


def test_one_axis_with_a_huge_stride() -> None:
    """Elements that lie far apart are read one by one."""
    part = Memory(np.arange(300_000, dtype=np.int32))
    assert read(strided(part, (4,), (90_000,)), 1, 3, "int32").tolist() == [90_000, 180_000, 270_000]
    assert part.reads == [4, 4, 4]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_ranges_in_any_order(data: st.DataObject) -> None:
    """The bytes of an element do not depend on which ranges were read before, nor on how they are cut."""
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    strides = tuple(data.draw(st.integers(0, 500)) for _ in shape)
    span = 1 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    values = np.arange(span, dtype=np.int32)
    expected = as_strided(values, shape, [4 * stride for stride in strides]).reshape(-1)
    view = strided(Memory(values), shape, strides)
    start = 0
    for _ in range(8):
        start = data.draw(st.sampled_from([start % len(expected), data.draw(st.integers(0, len(expected) - 1))]))
        count = data.draw(st.integers(1, len(expected) - start))
        np.testing.assert_array_equal(read(view, start, count, "int32"), expected[start : start + count])
        start += count


@pytest.mark.parametrize(("version", "digest"), [(1, "701ab462788781a8")])
def test_the_bytes_are_those_of_the_version(version: int, digest: str) -> None:
    """A golden digest: other bytes need another version in methods/ops.py."""
    part = Memory((np.arange(70_000, dtype=np.uint64) * 2654435761 % 2**32).astype(np.uint32))
    found = read(strided(part, (50, 7, 90), (3, 9000, 77)), 0, 50 * 7 * 90, "uint32")
    assert (OPS["strided"].version, hashlib.sha256(found.tobytes()).hexdigest()[:16]) == (version, digest)
