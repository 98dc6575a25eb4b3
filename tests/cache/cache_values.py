"""What the tests of the cache put into it, and how they look at its files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from mergeflow.cache.store import Cache
from mergeflow.dtypes import DTYPES, DType

# Few bytes to a chunk, so that small tensors have many of them.
SMALL_CHUNK = 48

dtypes = st.sampled_from(DTYPES)

# 0-d, empty, one element, 63, odd rows, rows longer than a chunk, several leading dimensions.
shapes = st.one_of(
    st.sampled_from([(), (0,), (1,), (63,), (0, 3), (3, 0, 2), (1, 1, 1), (7, 9), (2, 100), (63, 1), (2, 3, 17)]),
    st.lists(st.integers(0, 9), max_size=4).map(tuple),
)

finite_or_not = st.floats(allow_nan=True, allow_infinity=True)

records = st.dictionaries(
    st.text(max_size=8),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | finite_or_not | st.text(max_size=8) | st.binary(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=8,
    ),
    max_size=5,
)


def key(number: int) -> str:
    """A key of its own for each number, in one of 256 folders."""
    return f"{number % 256:02x}{number:062x}"


def raw_bytes(dtype: DType, shape: Sequence[int], seed: int = 0) -> NDArray[np.uint8]:
    """Bytes of a tensor, no two chunks alike; booleans are 0 or 1."""
    count = math.prod(shape) * dtype.itemsize
    values = np.random.default_rng(seed).integers(0, 256, count, dtype=np.uint8)
    return values % 2 if dtype.kind == "boolean" else values


def put_tensor(cache: Cache, name: str, dtype: DType, shape: Sequence[int], seed: int = 0) -> NDArray[np.uint8]:
    """Publishes a tensor, and returns its bytes."""
    values = raw_bytes(dtype, shape, seed)
    with cache.create_tensor(name, dtype, shape, {"op": "trim"}) as writer:
        writer.write(values)
        writer.publish()
    return values


def read_whole(cache: Cache, name: str) -> NDArray[np.uint8]:
    """Every byte of a tensor."""
    with cache.open_tensor(name) as reader:
        out = np.zeros(math.prod(reader.shape) * reader.dtype.itemsize, np.uint8)
        reader.read_into(0, out)
    return out


def files(cache: Cache, name: str) -> list[Path]:
    """The files of an entry, by name."""
    return sorted(Path(cache.folders.entry(name)).iterdir())


def work_in_progress(cache: Cache) -> list[str]:
    """What lies below .tmp."""
    works = Path(cache.folders.works)
    return sorted(path.name for path in works.iterdir()) if works.exists() else []
