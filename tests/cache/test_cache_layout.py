"""Where the bytes of a tensor lie."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from cache_values import shapes
from hypothesis import given
from hypothesis import strategies as st

from mergeflow.cache.layout import Layout, chunk_shape

itemsizes = st.sampled_from([1, 2, 4, 8])


@pytest.mark.parametrize(
    ("shape", "chunk"),
    [
        ((), ()),
        ((0,), (1,)),
        ((5,), (5,)),
        ((33,), (11,)),  # three chunks of 11, not two of 16 and one of 1
        ((4, 4), (4, 4)),
        ((5, 4), (3, 4)),  # two chunks of three rows
        ((3, 5, 4), (1, 3, 4)),
        ((2, 17), (1, 9)),  # a row longer than a chunk is cut
        ((1000, 0), (16, 1)),
        ((8, 1, 2), (8, 1, 2)),
    ],
)
def test_a_chunk_spans_whole_rows_where_it_can(shape: tuple[int, ...], chunk: tuple[int, ...]) -> None:
    """With room for 16 elements, a chunk takes trailing dimensions whole and cuts one evenly."""
    assert chunk_shape(shape, itemsize=2, chunk_bytes=32) == chunk


@given(shape=shapes, itemsize=itemsizes, chunk_bytes=st.integers(1, 300))
def test_chunks_are_runs_of_the_flat_tensor(shape: tuple[int, ...], itemsize: int, chunk_bytes: int) -> None:
    """The chunk of `place`, and the place in it, are those of the element's index in zarr's chunk grid."""
    layout = Layout(shape, chunk_shape(shape, itemsize, chunk_bytes), itemsize)
    assert layout.chunk_bytes <= max(chunk_bytes, itemsize)
    assert layout.count == math.prod(layout.grid)
    # Each index of the tensor in flat order: its chunk's number in the grid, and its flat index in the chunk.
    for flat, index in enumerate(itertools.product(*map(range, shape))):
        chunk = np.ravel_multi_index([i // step for i, step in zip(index, layout.chunk, strict=True)], layout.grid)
        within = np.ravel_multi_index([i % step for i, step in zip(index, layout.chunk, strict=True)], layout.chunk)
        place = layout.place(flat * itemsize)
        assert (place.chunk, place.offset) == (chunk, within * itemsize)
        assert itemsize <= place.left <= layout.chunk_bytes - place.offset


@given(shape=shapes, itemsize=itemsizes, chunk_bytes=st.integers(1, 300))
def test_the_runs_cover_the_tensor_in_order(shape: tuple[int, ...], itemsize: int, chunk_bytes: int) -> None:
    """Going from one run to the next visits every chunk once, in order, and ends at the tensor's last byte."""
    layout = Layout(shape, chunk_shape(shape, itemsize, chunk_bytes), itemsize)
    position, visited = 0, []
    while position < layout.nbytes:
        place = layout.place(position)
        assert place.offset == 0
        visited.append(place.chunk)
        position += place.left
    assert position == layout.nbytes
    assert visited == list(range(layout.count))


def test_a_large_tensor_has_little_padding() -> None:
    """A vocabulary of 151,936 rows of 8192 bytes is cut into chunks of at most 1 MiB, with under 0.1 % of padding."""
    layout = Layout((151_936, 4096), chunk_shape((151_936, 4096), 2, 1 << 20), 2)
    assert layout.chunk == (128, 4096)
    assert layout.nbytes <= layout.file_bytes < layout.nbytes * 1.001
