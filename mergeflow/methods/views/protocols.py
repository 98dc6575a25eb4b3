"""How a view is read: made once per task, then asked for ranges of elements, in any order.

    view = kernel(parts, parameters, "float32", shape)      may read small parts (scales, an adapter) at once
    view.read(start, out)                                   fills `out` with the elements from `start` on

The bytes of an element never depend on how the ranges are cut. Numbers are computed in float64, or in float32 where
that is exact, operation by operation, and rounded once; no library sum whose order is free, no matrix product of BLAS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Protocol, cast

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mergeflow.methods.schema import Op


class Part(Protocol):
    """A tensor that a view is made from. It may be a view itself."""

    @property
    def dtype(self) -> str:
        """The name of its number format: ``bfloat16``."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self, start: int, out: memoryview) -> None:
        """Fill `out` (bytes) with the elements from flat index `start` on, little-endian."""


class View(Protocol):
    """A tensor as a view op gives it."""

    def read(self, start: int, out: memoryview) -> None:
        """Fill `out` (bytes) with the elements from flat index `start` on, in the view's dtype, little-endian."""


# parts, parameters of the op, name of the dtype and shape of the view -> the view
ViewKernel = Callable[[Sequence[Part], Mapping[str, object], str, tuple[int, ...]], View]


def view_kernel(op: Op) -> ViewKernel:
    """The kernel of a ``view`` op, imported now."""
    module, _, name = op.kernel.partition(":")
    return cast(ViewKernel, getattr(import_module(module), name))


def numpy_dtype(name: str) -> np.dtype[np.generic]:
    """numpy's dtype for one of ours: ml_dtypes has those that numpy lacks."""
    return np.dtype(getattr(ml_dtypes, name) if hasattr(ml_dtypes, name) else name)


def elements(part: Part, start: int, count: int) -> NDArray[np.generic]:
    """`count` elements of a part from flat index `start` on, in the part's own dtype: (count,)."""
    dtype = numpy_dtype(part.dtype)
    found = np.empty(count, dtype)
    if count:
        part.read(start, found.view(np.uint8).data)
    return found


def whole(part: Part) -> NDArray[np.generic]:
    """All of a (small) part, in its own dtype and shape."""
    size = int(np.prod(part.shape, dtype=np.int64))
    return elements(part, 0, size).reshape(part.shape)
