"""What a GGUF file says it holds, read and validated before anything in it is believed.

    "GGUF"  u32 version (2 or 3)   u64 tensors   u64 entries of metadata       all little-endian
    entry:  text key, u32 type, value          text: u64 length, UTF-8 bytes;  array: u32 type, u64 count, values
    tensor: text name, u32 dimensions, u64 lengths (the last varies slowest), u32 type, u64 offset
    the tensors' bytes, from the next multiple of `general.alignment` on; offsets count from there

Tensors lie one behind the other, in the order listed, each from a multiple of the alignment on. Of the metadata only
what could configure a model is kept: numbers, short texts, short lists of numbers. The vocabulary, which is most of a
header, is passed over. So what is in memory is bounded, whatever counts and lengths the file claims: each is held
against the bytes that are left before it is used.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedIOBase, BufferedReader, RawIOBase
from typing import TYPE_CHECKING

from mergeflow.errors import CheckpointError
from mergeflow.models.gguf_types import OTHER_TYPES, TYPES, TensorType
from mergeflow.models.ranges import Ranges
from mergeflow.models.records import FileIdentity

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Value = bool | int | float | str | tuple[bool | int | float, ...]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
# A vocabulary of 260,000 tokens with its merges takes about 16 MB.
MAX_HEADER_BYTES = 200_000_000
MAX_TENSORS = 1_000_000
MAX_ENTRIES = 100_000
MAX_NAME_BYTES = 1024
MAX_KEPT_TEXT_BYTES = 1024
MAX_KEPT_ITEMS = 1024
MAX_NESTING = 4
MAX_DIMENSIONS = 4
MAX_ELEMENTS = 2**62
MAX_ALIGNMENT = 2**20
_DEFAULT_ALIGNMENT = 32
_ALIGNMENT_KEY = "general.alignment"
READ_AHEAD_BYTES = 1 << 20

_TEXT, _ARRAY = 8, 9
_NUMBERS: Mapping[int, struct.Struct] = {
    number: struct.Struct("<" + code)
    for number, code in {
        0: "B",
        1: "b",
        2: "H",
        3: "h",
        4: "I",
        5: "i",
        6: "f",
        7: "?",
        10: "Q",
        11: "q",
        12: "d",
    }.items()
}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor as the file has it. `shape` is in the usual order (the last varies fastest); `offset` is absolute."""

    name: str
    type: TensorType
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) // self.type.elements * self.type.nbytes


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The metadata that could configure a model, and every tensor by its name in the file."""

    file: FileIdentity
    metadata: Mapping[str, Value]
    tensors: Mapping[str, GgufTensor]


def gguf_header(ranges: Ranges) -> GgufHeader:
    """The header of a GGUF file, wherever it is; no byte of a tensor is read.

    Raises:
        CheckpointError: the file cannot be read, is no GGUF file of version 2 or 3, breaks the format's rules, or holds
            a tensor of a type that we do not read.
    """
    with BufferedReader(_Stream(ranges), READ_AHEAD_BYTES) as stream:
        return _header(_Cursor(stream, ranges.file), ranges.file)


class _Stream(RawIOBase):
    """The bytes of a file in order, as `io` wants them: a buffer over it makes few requests of many small reads."""

    def __init__(self, ranges: Ranges) -> None:
        self._ranges = ranges
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._position = offset + (self._position if whence == os.SEEK_CUR else 0)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, into: WriteableBuffer, /) -> int:
        room = memoryview(into).cast("B")
        found = self._ranges.read(self._position, len(room))
        room[: len(found)] = found
        self._position += len(found)
        return len(found)


class _Cursor:
    """A place in the header. Nothing is read or passed over that the file, or a header's limit, has no room for."""

    def __init__(self, stream: BufferedIOBase, file: FileIdentity) -> None:
        self._stream = stream
        self._path = file.path
        self._end = min(file.size, MAX_HEADER_BYTES)
        self._is_limit = file.size > MAX_HEADER_BYTES
        self.position = 0

    def number(self, form: struct.Struct) -> bool | int | float:
        (value,) = form.unpack(self.take(form.size))
        return value  # type: ignore[no-any-return]

    def u32(self) -> int:
        return int(self.number(_U32))

    def u64(self) -> int:
        return int(self.number(_U64))

    def take(self, count: int) -> bytes:
        self._advance(count)
        found = self._stream.read(count)
        if len(found) != count:
            raise self.wrong("is being changed while it is read")
        return found

    def skip(self, count: int) -> None:
        self._advance(count)
        self._stream.seek(count, os.SEEK_CUR)

    def skip_texts(self, count: int) -> None:
        """Pass over so many texts. A vocabulary has half a million, so that this loop is the cost of a header."""
        read, seek, unpack = self._stream.read, self._stream.seek, _U64.unpack
        left = self._end - self.position
        for _ in range(count):
            found = read(_U64.size)
            (length,) = unpack(found) if len(found) == _U64.size else (left,)
            left -= _U64.size + length
            if left < 0:
                break
            seek(length, os.SEEK_CUR)
        self._advance(self._end - self.position - left)

    def check(self, count: int, least_bytes: int, what: str) -> int:
        """`count`, when so many things of at least `least_bytes` each can follow."""
        if count * least_bytes > self._end - self.position:
            raise self.wrong(f"claims {count} {what}, more than it has room for: it is cut off or damaged")
        return count

    def text(self, what: str, limit: int) -> str:
        length = self.u64()
        if length > limit:
            raise self.wrong(f"has {what} of {length} bytes; at most {limit} were expected")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.wrong(f"has {what} that is not UTF-8 text") from error

    def wrong(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self._path}: {what} (a GGUF header, byte {self.position})")

    def _advance(self, count: int) -> None:
        if count > self._end - self.position:
            limit = f"its header is longer than {MAX_HEADER_BYTES // 1_000_000} MB" if self._is_limit else "it ends"
            raise self.wrong(f"{limit} in the middle of what it describes: it is cut off or damaged")
        self.position += count


def _header(cursor: _Cursor, file: FileIdentity) -> GgufHeader:
    _check_version(cursor)
    tensor_count, entry_count = cursor.u64(), cursor.u64()
    if tensor_count > MAX_TENSORS or entry_count > MAX_ENTRIES:
        raise cursor.wrong(f"claims {tensor_count} tensors and {entry_count} entries of metadata, which no model has")
    cursor.check(entry_count, 13, "entries of metadata")
    metadata: dict[str, Value] = {}
    seen: set[str] = set()
    for _ in range(entry_count):
        key = cursor.text("a key", MAX_NAME_BYTES)
        if key in seen:
            raise cursor.wrong(f"has {key!r:.120} twice in its metadata")
        seen.add(key)
        value = _value(cursor, cursor.u32(), key)
        if value is not None:
            metadata[key] = value
    alignment = _alignment(metadata, cursor)
    cursor.check(tensor_count, 32, "tensors")
    listed = [_tensor(cursor, alignment) for _ in range(tensor_count)]
    return GgufHeader(file, metadata, _placed(listed, _aligned(cursor.position, alignment), alignment, file))


def _check_version(cursor: _Cursor) -> None:
    magic = cursor.take(len(_MAGIC))
    if magic != _MAGIC:
        what = "is a Git LFS pointer, not the weights; run `git lfs pull`" if magic == b"vers" else "is no GGUF file"
        raise cursor.wrong(what)
    version = cursor.u32()
    if version in _VERSIONS:
        return
    if int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS:
        raise cursor.wrong("is a big-endian GGUF file, which this version cannot read; convert it again")
    raise cursor.wrong(f"is of GGUF version {version}; versions 2 and 3 can be read; convert it again")


def _value(cursor: _Cursor, kind: int, key: str) -> Value | None:
    """A value of the metadata; None for what is passed over."""
    if kind in _NUMBERS:
        return cursor.number(_NUMBERS[kind])
    if kind == _TEXT:
        length = cursor.u64()
        if length > MAX_KEPT_TEXT_BYTES:
            cursor.skip(length)
            return None
        return cursor.take(length).decode("utf-8", errors="replace")
    if kind == _ARRAY:
        return _array(cursor, key, 1)
    raise cursor.wrong(f"has a value of type {kind} for {key!r:.120}; there is no such type")


def _array(cursor: _Cursor, key: str, depth: int) -> tuple[bool | int | float, ...] | None:
    """A short list of numbers; None for any other array, which is passed over."""
    kind, count = cursor.u32(), cursor.u64()
    if kind in _NUMBERS:
        form = _NUMBERS[kind]
        cursor.check(count, form.size, f"items of {key!r:.120}")
        if depth == 1 and count <= MAX_KEPT_ITEMS:
            return tuple(cursor.number(form) for _ in range(count))
        cursor.skip(count * form.size)
        return None
    if kind == _TEXT:
        cursor.skip_texts(cursor.check(count, _U64.size, f"items of {key!r:.120}"))
        return None
    if kind == _ARRAY and depth < MAX_NESTING:
        for _ in range(cursor.check(count, 12, f"items of {key!r:.120}")):
            _array(cursor, key, depth + 1)
        return None
    raise cursor.wrong(f"has items of type {kind} in {key!r:.120}, or lists nested too deeply")


def _alignment(metadata: Mapping[str, Value], cursor: _Cursor) -> int:
    alignment = metadata.get(_ALIGNMENT_KEY, _DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise cursor.wrong(f"has {_ALIGNMENT_KEY} {alignment!r:.40}; a power of two up to 2^20 was expected")
    return alignment


def _tensor(cursor: _Cursor, alignment: int) -> GgufTensor:
    """One tensor, checked on its own; its offset still counts from the end of the header."""
    name = cursor.text("the name of a tensor", MAX_NAME_BYTES)
    dimensions = cursor.u32()
    if not 0 < dimensions <= MAX_DIMENSIONS:
        raise cursor.wrong(f"has {dimensions} dimensions for tensor {name!r:.120}; 1 to {MAX_DIMENSIONS} were expected")
    lengths = [cursor.u64() for _ in range(dimensions)]
    kind, offset = cursor.u32(), cursor.u64()
    type_ = TYPES.get(kind)
    if type_ is None:
        raise cursor.wrong(
            f"holds tensor {name!r:.120} as {OTHER_TYPES.get(kind, f'type {kind}')}, which this version cannot read; "
            f"it reads {', '.join(known.name for known in TYPES.values())}"
        )
    if min(lengths) < 1 or math.prod(lengths) > MAX_ELEMENTS:
        raise cursor.wrong(f"has shape {lengths[::-1]} for tensor {name!r:.120}, which no tensor has")
    if lengths[0] % type_.elements:
        raise cursor.wrong(
            f"has rows of {lengths[0]} for tensor {name!r:.120}, which are not whole blocks of {type_.elements} "
            f"({type_.name})"
        )
    if offset % alignment:
        raise cursor.wrong(f"has offset {offset} for tensor {name!r:.120}, which is no multiple of {alignment}")
    return GgufTensor(name, type_, tuple(reversed(lengths)), offset)


def _placed(listed: list[GgufTensor], start: int, alignment: int, file: FileIdentity) -> dict[str, GgufTensor]:
    """The tensors by name, with absolute offsets; each must begin where the one before it ends."""
    placed: dict[str, GgufTensor] = {}
    reached, previous = start, "the header"
    for tensor in sorted(listed, key=lambda tensor: tensor.offset):
        begin, end = start + tensor.offset, start + tensor.offset + tensor.nbytes
        what = None
        if tensor.name in placed:
            what = "is there twice"
        elif begin < reached:
            what = f"overlaps {previous}"
        elif begin > reached:
            what = f"leaves a hole of {begin - reached} bytes after {previous}"
        elif end > file.size:
            what = f"ends {end - file.size} bytes beyond the end of the file: it is cut off or damaged"
        if what is not None:
            raise CheckpointError(f"{file.path}: tensor {tensor.name!r:.120} {what}")
        placed[tensor.name] = GgufTensor(tensor.name, tensor.type, tensor.shape, begin)
        reached, previous = _aligned(end, alignment), repr(tensor.name)
    return placed


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
