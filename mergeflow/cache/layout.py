"""How a tensor is cut into chunks, and where each chunk lies in its file.

A tensor is read and written as one flat, row-major run of bytes, so a chunk must be a contiguous run too. It spans the
trailing dimensions whole, a range of one dimension, and one index of each dimension before that:

    shape (8, 1000, 64), chunk (1, 334, 64):   slab 0 = chunks 0 1 2,  slab 1 = chunks 3 4 5,  ...

Zarr stores every chunk at full size, the last of a slab padded with zeros. So chunk n lies at a known offset, and the
file's size follows from the shape alone: a missing or short chunk, which a zarr reader would silently take for zeros,
shows in one `stat`. All chunks of a tensor share one file, zarr's sharding codec: chunks in order, then an index of
(offset, length) pairs, then the index's CRC. A tensor of one chunk needs no index, one of none no file.

    chunk 0 | crc | chunk 1 | crc | ... | index | crc

The chunk size was measured on 256 MB of bytes written and read in blocks of 512 KiB, GB/s, two cores with a load of 3:

    chunk               256K     512K     1M       2M       4M
    write, one file     2.1      2.0      2.4      2.4      2.1
    read, one file      5.8      6.4      5.7      5.2      5.2
    write, file each    0.2      0.3      0.6      1.2      1.6        (why there is one file for each tensor)

1 MiB keeps a chunk in the L2 cache between reading it and checking its CRC, and it is what a reader holds in memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

CHUNK_BYTES = 1 << 20
CRC_BYTES = 4
_INDEX_ENTRY_BYTES = 16


def chunk_shape(shape: Sequence[int], itemsize: int, chunk_bytes: int) -> tuple[int, ...]:
    """The shape of the chunks of a tensor: contiguous, at most `chunk_bytes` each (but at least one element).

    The dimension that is cut is cut evenly, so that little of the last chunk is padding.
    """
    chunk = [1] * len(shape)
    room = max(1, chunk_bytes // itemsize)  # elements
    for axis in reversed(range(len(shape))):
        extent = max(1, shape[axis])
        pieces = math.ceil(extent / room)
        chunk[axis] = math.ceil(extent / pieces)
        if pieces > 1:
            break
        room //= extent
    return tuple(chunk)


@dataclass(frozen=True, slots=True)
class Place:
    """Where one byte of a tensor lies: in which chunk, how far in, and how many of the tensor's bytes follow there."""

    chunk: int
    offset: int
    left: int


@dataclass(frozen=True)  # no slots: cached properties live in the instance's dictionary
class Layout:
    """The chunks of one tensor. `itemsize` and everything called bytes is in bytes."""

    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    itemsize: int

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of chunks along each dimension."""
        return tuple(math.ceil(extent / step) for extent, step in zip(self.shape, self.chunk, strict=True))

    @cached_property
    def count(self) -> int:
        """Number of chunks (none when a dimension is zero)."""
        return math.prod(self.grid)

    @property
    def padded_shape(self) -> tuple[int, ...]:
        """The shape rounded up to whole chunks: the shape of the one shard."""
        return tuple(step * max(1, pieces) for step, pieces in zip(self.chunk, self.grid, strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor itself."""
        return math.prod(self.shape) * self.itemsize

    @cached_property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk, padding included and its CRC not."""
        return math.prod(self.chunk) * self.itemsize

    @cached_property
    def slab_bytes(self) -> int:
        """Bytes of the tensor after which the pattern of chunks repeats."""
        return math.prod(self.shape[self._cut_axis :]) * self.itemsize

    @cached_property
    def slab_chunks(self) -> int:
        """Number of chunks of one slab."""
        return math.ceil(self.slab_bytes / self.chunk_bytes)

    @property
    def file_bytes(self) -> int:
        """Size of the file that holds the chunks; 0 when there is none."""
        index = _INDEX_ENTRY_BYTES * self.count + CRC_BYTES if self.has_index else 0
        return self.count * (self.chunk_bytes + CRC_BYTES) + index

    @property
    def has_index(self) -> bool:
        return self.count > 1

    @property
    def file_name(self) -> str:
        """The zarr key of the first chunk (or only shard), with dots, so that it lies beside zarr.json."""
        return ".".join(["c", *("0" for _ in self.shape)])

    @property
    def _cut_axis(self) -> int:
        """The first dimension of which a chunk spans more than one index, or else the last."""
        return next((axis for axis, step in enumerate(self.chunk) if step > 1), max(0, len(self.chunk) - 1))

    def chunk_offset(self, chunk: int) -> int:
        """Where chunk number `chunk` begins in the file."""
        return chunk * (self.chunk_bytes + CRC_BYTES)

    def place(self, position: int) -> Place:
        """Where byte `position` of the flat tensor lies; `position` is below `nbytes`."""
        slab, within = divmod(position, self.slab_bytes)
        piece, offset = divmod(within, self.chunk_bytes)
        payload = min(self.chunk_bytes, self.slab_bytes - piece * self.chunk_bytes)
        return Place(chunk=slab * self.slab_chunks + piece, offset=offset, left=payload - offset)
