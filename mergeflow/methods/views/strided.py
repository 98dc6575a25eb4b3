"""strided: a tensor whose elements lie in another order than row by row: R[i, j, ...] = X[i * s_0 + j * s_1 + ...].

What torch.save leaves of a transposed, sliced or expanded tensor. A range of R is cut into boxes (part of a row, whole
rows, part of a row), and each box is gathered in memory from pieces of X, of at most `PIECE_BYTES`: runs of rows of X,
or single ones where they are so long that reading the bytes between costs more than another read.

Whoever reads on from where the last range ended gets the next `AHEAD_BYTES` of R at once. A transposed matrix is then
read once for each so many bytes of it (45 million elements of bfloat16: eight times, in all), not once for each block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from mergeflow.methods.ops import OPS
from mergeflow.methods.views.protocols import Part, elements, numpy_dtype

PIECE_BYTES = 4 << 20
AHEAD_BYTES = OPS["strided"].holds
# What could be read in the time that one read takes by itself: 30 us, nearly all of it ours.
READ_BYTES = 1 << 16

Lengths = tuple[int, ...]


class Strided:
    """The view. Parameter `strides`: one per axis, in elements, none negative."""

    def __init__(
        self, parts: Sequence[Part], parameters: Mapping[str, object], dtype: str, shape: tuple[int, ...]
    ) -> None:
        (self._part,) = parts
        # Elements are only moved: as bits they are all the same, and numpy knows how to stride over those.
        self._bits = np.dtype(f"u{numpy_dtype(dtype).itemsize}")
        strides = cast(Sequence[int], parameters["strides"])
        axes = [(length, stride) for length, stride in zip(shape, strides, strict=True) if length != 1]
        self._shape = tuple(length for length, _ in axes)
        self._strides = tuple(stride for _, stride in axes)
        self._size = math.prod(self._shape)
        self._next = -1  # where a read goes on from the last one
        self._ahead_from, self._ahead = 0, np.empty(0, self._bits)

    def read(self, start: int, out: memoryview) -> None:
        into = np.frombuffer(out, self._bits)
        while len(into):
            held = self._held(start)[: len(into)]
            if len(held):
                into[: len(held)] = held
                start, into = start + len(held), into[len(held) :]
            elif start == self._next:
                self._ahead_from = start
                self._ahead = np.empty(min(AHEAD_BYTES // self._bits.itemsize, self._size - start), self._bits)
                self._fill(start, self._ahead)
            else:
                self._fill(start, into)
                start, into = start + len(into), into[:0]
        self._next = start

    def _held(self, start: int) -> NDArray[np.generic]:
        """What was read ahead of the elements from `start` on."""
        return self._ahead[start - self._ahead_from :] if start >= self._ahead_from else self._ahead[:0]

    def _fill(self, start: int, into: NDArray[np.generic]) -> None:
        """Fill `into` with the elements from `start` on, box by box."""
        done = 0
        for begin, lengths in _boxes(start, start + len(into), self._shape):
            count = math.prod(lengths)
            strides = self._strides[len(self._strides) - len(lengths) :]
            place = sum(index * stride for index, stride in zip(begin, self._strides, strict=True))
            self._gather(place, lengths, strides, into[done : done + count].reshape(lengths))
            done += count

    def _gather(self, place: int, lengths: Lengths, strides: Lengths, into: NDArray[np.generic]) -> None:
        """Fill `into` (of shape `lengths`) from the elements at `place` and on."""
        span = 1 + sum((length - 1) * stride for length, stride in zip(lengths, strides, strict=True))
        axis = max(range(len(lengths)), key=lambda i: strides[i] * (lengths[i] > 1), default=0)
        count, stride = (lengths[axis], strides[axis]) if lengths else (1, 0)
        most, read = PIECE_BYTES // self._bits.itemsize, READ_BYTES // self._bits.itemsize
        if span == 1 or (span <= most and span <= into.size + read * count):
            found = elements(self._part, place, span).view(self._bits)
            steps = tuple(step * found.itemsize for step in strides)
            into[...] = as_strided(found, lengths, steps, writeable=False)
            return
        together = min(most // stride, (count + 1) // 2) if stride <= into.size // count + read else 1
        along = np.moveaxis(into, axis, 0)
        for index in range(0, count, max(1, together)):
            part = along[index : index + max(1, together)]
            shorter = (*lengths[:axis], len(part), *lengths[axis + 1 :])
            self._gather(place + index * stride, shorter, strides, np.moveaxis(part, 0, axis))


def _boxes(start: int, stop: int, shape: Lengths) -> Iterator[tuple[Lengths, Lengths]]:
    """The flat range [start, stop) of a tensor as boxes in order: (index of its first element, last axes' lengths)."""
    if start >= stop:
        return
    if len(shape) <= 1:
        yield ((start,), (stop - start,)) if shape else ((), ())
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row
    if first > last:  # inside of one row
        yield from _in_row(last, start, stop, shape)
        return
    yield from _in_row(first - 1, start, first * row, shape)
    if first < last:
        yield (first, *(0,) * (len(shape) - 1)), (last - first, *shape[1:])
    yield from _in_row(last, last * row, stop, shape)


def _in_row(index: int, start: int, stop: int, shape: Lengths) -> Iterator[tuple[Lengths, Lengths]]:
    """As `_boxes`, of a range within the row `index`."""
    row = math.prod(shape[1:])
    for begin, lengths in _boxes(start - index * row, stop - index * row, shape[1:]):
        yield (index, *begin), lengths
