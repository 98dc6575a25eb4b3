"""A tensor written and read as one flat run of little-endian bytes, in blocks of any length.

The chunks are written and read here with plain system calls and zarr's own CRC32C (google_crc32c), not through zarr's
array interface. The codecs in use (little-endian bytes, a CRC, a shard index) are fixed-size and simple, and each byte
of detour costs: a cached tensor is worth keeping only when reading it is cheaper than computing it. bf16, 128 MiB, one
caller thread, page cache, MB/s:

                                                      write       read
    zarr-python, its own pipeline, a chunk a call      170       1,300
    zarr-python, zarrs pipeline, a chunk a call        700       1,100      (chunks of 1M elements)
    zarr-python, zarrs pipeline, 4 chunks a call     1,230       1,640      (16 MB of buffer for each open tensor)
    here                                             2,300       5,700

It also keeps the 0.7 s import of zarr out of every worker, holds no more than one chunk in memory, and says ENOSPC when
the disk is full, where the Rust pipeline raises a RuntimeError with a text. That what lies here is zarr is tested with
tensorstore, zarr-python and zarrs (see `arrays`).

Writing needs no buffer: a CRC can be extended block by block, so each block goes straight to the file. Reading checks a
chunk before it returns any byte of it, so it reads whole chunks: into the caller's memory when the range covers one,
else into one reused buffer.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol, Self

import google_crc32c
import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from mergeflow.cache.document import TensorDocument
from mergeflow.cache.entry import as_corrupt, check_size
from mergeflow.cache.layout import CRC_BYTES, Layout
from mergeflow.dtypes import DType
from mergeflow.errors import CorruptEntry

Bytes = NDArray[np.uint8]

# Anything with a contiguous buffer: bytes, memoryview, a numpy array of plain numbers.
Block = bytes | bytearray | memoryview | Bytes

_ZEROS = bytes(1 << 16)


class Sequential(Protocol):
    """What a tensor's bytes go into, in order: a file."""

    def write(self, data: bytes | memoryview, /) -> int: ...

    def close(self) -> None: ...


class Digesting:
    """A file whose blake3 is computed as it is written. That costs about as much as writing: for what is shared."""

    def __init__(self, file: Sequential) -> None:
        self._file = file
        self._hash = blake3()

    def write(self, data: bytes | memoryview, /) -> int:
        self._hash.update(data)
        return self._file.write(data)

    def close(self) -> None:
        self._file.close()

    def hexdigest(self) -> str:
        """The digest of all that was written, in hexadecimal."""
        return self._hash.hexdigest()


class TensorWriter:
    """Writes one tensor in rising order, then publishes it; made by `Cache.create_tensor`.

    Leaving the `with` block without `publish` (or with an exception) leaves nothing behind. A failure while writing
    does the same and is passed on. One thread at a time.
    """

    def __init__(self, layout: Layout, file: Sequential, publish: Callable[[], int], drop: Callable[[], None]) -> None:
        self._layout = layout
        self._file = file
        self._publish = publish
        self._drop = drop
        self._position = 0
        self._crc = 0
        self._open = True

    def write(self, block: Block) -> None:
        """Appends the raw little-endian bytes of `block`, of any length.

        Raises:
            ValueError: more bytes than the tensor has, or the writer is closed.
            OSError: the disk is full or failed; nothing of the entry is left.
        """
        with self._abort_on_failure():
            view = _flat(block)
            if self._position + view.size > self._layout.nbytes:
                raise ValueError(f"{self._position + view.size} bytes written to a tensor of {self._layout.nbytes}")
            while view.size:
                place = self._layout.place(self._position)
                piece = view[: place.left]
                self._append(piece)
                self._position += piece.size
                if piece.size == place.left:
                    self._end_chunk(place.offset + piece.size)
                view = view[piece.size :]

    def publish(self) -> int:
        """Makes the entry visible, and returns the bytes it takes. When the key exists by now, the first one stays.

        Raises:
            ValueError: not all of the tensor was written, or the writer is closed; nothing of the entry is left.
            OSError: the disk is full or failed; nothing of the entry is left.
        """
        with self._abort_on_failure():
            if self._position != self._layout.nbytes:
                raise ValueError(f"{self._position} bytes written to a tensor of {self._layout.nbytes}")
            if self._layout.has_index:
                self._file.write(shard_index(self._layout))
            self._file.close()
            nbytes = self._publish()
        self._open = False
        return nbytes

    def abort(self) -> None:
        """Drops what was written; nothing happens after `publish` or a second time."""
        if not self._open:
            return
        self._open = False
        # Closing flushes, which on a full disk fails once more; the file is closed all the same.
        with contextlib.suppress(OSError):
            self._file.close()
        self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def _append(self, piece: Bytes) -> None:
        self._file.write(piece.data)
        self._crc = _extended(self._crc, piece)

    def _end_chunk(self, filled: int) -> None:
        """Pads the chunk, of which `filled` bytes are written, to its full size, and adds its CRC."""
        missing = self._layout.chunk_bytes - filled
        while missing:
            zeros = _flat(_ZEROS)[:missing]
            self._append(zeros)
            missing -= zeros.size
        self._file.write(_CRC.pack(self._crc))
        self._crc = 0

    @contextlib.contextmanager
    def _abort_on_failure(self) -> Iterator[None]:
        if not self._open:
            raise ValueError("this tensor was published or aborted already")
        try:
            yield
        except BaseException:
            self.abort()
            raise


class TensorReader:
    """Reads any range of one tensor; made by `Cache.open_tensor`. Rising ranges are the fast way.

    Holds the file open, so an entry that is removed meanwhile can be read to its end. Close it, or use `with`.
    One thread at a time.

    Attributes:
        dtype: the number format of the elements.
        shape: the tensor's shape.
    """

    def __init__(self, key: str, document: TensorDocument, folder: str) -> None:
        self.dtype: DType = document.dtype
        self.shape: tuple[int, ...] = document.layout.shape
        self._key = key
        self._layout = document.layout
        self._chunk = -1  # the one that is in the buffer
        self._buffer: Bytes | None = None
        self._handle: int | None = None
        if self._layout.count:
            self._handle = self._opened(f"{folder}/{self._layout.file_name}")
            self._check(document)

    def read_into(self, start: int, out: Block) -> None:
        """Fills `out` with the raw little-endian bytes of the elements from flat index `start` on.

        Args:
            start: index of the first element.
            out: writable, contiguous, a whole number of elements long; its length says how many are read.

        Raises:
            ValueError: the range is not inside the tensor.
            CorruptEntry: a chunk's bytes are not those that were written. `out` holds nothing of use then.
        """
        view = _flat(out)
        position = start * self.dtype.itemsize
        if start < 0 or view.size % self.dtype.itemsize or position + view.size > self._layout.nbytes:
            raise ValueError(
                f"{view.size} bytes from element {start} on are not in a tensor of {self._layout.nbytes} bytes"
            )
        while view.size:
            place = self._layout.place(position)
            piece = view[: place.left]
            if piece.size == self._layout.chunk_bytes:
                self._load(place.chunk, piece)
            else:
                np.copyto(piece, self._buffered(place.chunk)[place.offset : place.offset + piece.size])
            position += piece.size
            view = view[piece.size :]

    def close(self) -> None:
        """Closes the file; nothing happens a second time."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # A task that was cancelled in the middle must not cost a file handle for good.
        if getattr(self, "_handle", None) is not None:
            self.close()

    def _buffered(self, chunk: int) -> Bytes:
        """The buffer, holding chunk number `chunk`."""
        if self._buffer is None:
            self._buffer = np.empty(self._layout.chunk_bytes, np.uint8)
        if self._chunk != chunk:
            self._chunk = -1
            self._load(chunk, self._buffer)
            self._chunk = chunk
        return self._buffer

    def _load(self, chunk: int, target: Bytes) -> None:
        """Reads chunk number `chunk` into `target`, which has its full size, and checks it."""
        tail = bytearray(CRC_BYTES)
        self._read_at(self._layout.chunk_offset(chunk), target.data, tail)
        if _CRC.unpack(tail)[0] != _extended(0, target):
            raise CorruptEntry(self._key, f"the bytes of chunk {chunk} were changed")

    def _check(self, document: TensorDocument) -> None:
        """The file's size, and its index, which we can do without but other zarr readers cannot."""
        assert self._handle is not None
        check_size(self._key, document, os.fstat(self._handle))
        if self._layout.has_index:
            expected = shard_index(self._layout)
            found = bytearray(len(expected))
            self._read_at(self._layout.chunk_offset(self._layout.count), found)
            if found != expected:
                raise CorruptEntry(self._key, "its chunk index was changed")

    def _read_at(self, offset: int, *buffers: memoryview | bytearray) -> None:
        if self._handle is None:
            raise ValueError("this tensor is closed")
        try:
            count = os.preadv(self._handle, buffers, offset)
        except OSError as error:
            raise as_corrupt(self._key, self._layout.file_name, error) from error
        if count != sum(len(buffer) for buffer in buffers):
            raise CorruptEntry(self._key, "its chunks were cut short")

    def _opened(self, path: str) -> int:
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise as_corrupt(self._key, self._layout.file_name, error) from error


def shard_index(layout: Layout) -> bytes:
    """The index at the end of a shard: offset and length of each chunk (uint64, little-endian), then their CRC32C."""
    pairs = np.empty((layout.count, 2), "<u8")  # (chunks, 2)
    pairs[:, 0] = np.arange(layout.count, dtype="<u8") * (layout.chunk_bytes + CRC_BYTES)
    pairs[:, 1] = layout.chunk_bytes + CRC_BYTES
    index = pairs.tobytes()
    return index + _CRC.pack(_extended(0, _flat(index)))


_CRC = struct.Struct("<I")


def _extended(crc: int, piece: Bytes) -> int:
    """The CRC32C of what `crc` covers followed by `piece`. (The C code takes numpy arrays, but no memoryviews.)"""
    extended: int = google_crc32c.extend(crc, piece)
    return extended


def _flat(block: Block) -> Bytes:
    """The bytes of `block`, not copied; ValueError when they are not contiguous."""
    buffer = block.data if isinstance(block, np.ndarray) else memoryview(block)
    if not buffer.c_contiguous:
        raise ValueError("the bytes of a block must be contiguous")
    return np.frombuffer(buffer, np.uint8) if buffer.nbytes else np.empty(0, np.uint8)
