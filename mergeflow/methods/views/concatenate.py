"""concatenate: the parts one behind the other, as bytes lie: R = [X_1; X_2; ...] along the first axis.

Stacking matrices, and concatenating along the first axis, are both this: row-major bytes in a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

from mergeflow.methods.views.protocols import Part, elements, numpy_dtype


class Concatenate:
    """The view. Parts may be of another dtype than the view: they are converted (which must lose nothing)."""

    def __init__(
        self, parts: Sequence[Part], parameters: Mapping[str, object], dtype: str, shape: tuple[int, ...]
    ) -> None:
        self._parts = parts
        self._dtype = numpy_dtype(dtype)
        self._starts = [0, *accumulate(_size(part) for part in parts)]

    def read(self, start: int, out: memoryview) -> None:
        itemsize = self._dtype.itemsize
        end = start + len(out) // itemsize
        for part, first, last in zip(self._parts, self._starts, self._starts[1:], strict=False):
            low, high = max(start, first), min(end, last)
            if low >= high:
                continue
            piece = out[(low - start) * itemsize : (high - start) * itemsize]
            if numpy_dtype(part.dtype) == self._dtype:
                part.read(low - first, piece)
            else:
                piece[:] = elements(part, low - first, high - low).astype(self._dtype).view("u1").data


def _size(part: Part) -> int:
    size = 1
    for length in part.shape:
        size *= length
    return size
