"""The directory of a zip archive, as torch.save writes them: which entry's bytes lie where in the file.

    entries, each: header (30 bytes, name, padding), then its bytes as they are
    directory: per entry its name, sizes and the place of its header
    end record (22 bytes): where the directory is. In large archives a second one (zip64) before it

Torch stores tensors without compression, so an entry is a range of the file. A compressed entry is refused rather than
unpacked: it is none of torch's, and a megabyte may unpack to a terabyte. Every place and size is held against the file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mergeflow.errors import CheckpointError
from mergeflow.models.ranges import Ranges

# Some 400,000 entries; a model has some hundreds.
MAX_DIRECTORY_BYTES = 32_000_000
_END = struct.Struct("<4sHHHHIIH")
_END64_PLACE = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQHHIIQQQQ")
_ENTRY = struct.Struct("<4sHHHHHHIIIHHHHHII")
_HEADER = struct.Struct("<4sHHHHHIIIHH")
_MAX_COMMENT = 65_535
_ENCRYPTED = 1
# Torch pads the header of each entry, by a block of four bytes and more, until its bytes begin at a multiple of this.
_ALIGNMENT = 64
_PADDING = 4
_FULL_16, _FULL_32 = 0xFFFF, 0xFFFFFFFF
_ZIP64 = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the archive: its name, the place of its header, and what the directory says of its bytes."""

    name: str
    header: int
    nbytes: int
    is_plain: bool


def is_zip(start: bytes) -> bool:
    """Whether a file that starts with these bytes is a zip archive."""
    return start.startswith((b"PK\x03\x04", b"PK\x05\x06"))


def read_directory(ranges: Ranges) -> Mapping[str, Entry]:
    """The entries of an archive, by name.

    Raises:
        CheckpointError: the file is cut off, or is no archive that torch wrote.
    """
    offset, size = _directory_place(ranges)
    if size > MAX_DIRECTORY_BYTES:
        raise _damaged(ranges, "its directory is larger than any model's")
    text = ranges.read(offset, size)
    if len(text) < size:
        raise _damaged(ranges, "its directory is cut off")
    entries: dict[str, Entry] = {}
    for entry in _entries(ranges, text):
        if entry.name in entries:
            raise _damaged(ranges, f"it holds {entry.name!r:.120} twice")
        if entry.is_plain and entry.header + _HEADER.size + entry.nbytes > offset:
            raise _damaged(ranges, f"{entry.name!r:.120} does not lie before its directory")
        entries[entry.name] = entry
    return entries


def stored_range(ranges: Ranges, entry: Entry) -> tuple[int, int]:
    """Where an entry's bytes lie in the file: (offset, number of bytes).

    Raises:
        CheckpointError: they are compressed or encrypted, or the entry's header is not there.
    """
    _check_is_plain(ranges, entry)
    header = ranges.read(entry.header, _HEADER.size)
    if len(header) < _HEADER.size or not header.startswith(b"PK\x03\x04"):
        raise _damaged(ranges, f"the header of {entry.name!r:.120} is not where its directory says")
    _, _, flags, method, _, _, _, _, _, name, extra = _HEADER.unpack(header)
    offset = entry.header + _HEADER.size + name + extra
    if method or flags & _ENCRYPTED or name != len(entry.name.encode()):
        raise _damaged(ranges, f"the header of {entry.name!r:.120} contradicts its directory")
    if offset + entry.nbytes > ranges.file.size:
        raise _damaged(ranges, f"{entry.name!r:.120} ends behind the end of the file")
    return offset, entry.nbytes


def expected_range(ranges: Ranges, entry: Entry) -> tuple[int, int]:
    """Where they lie if torch wrote the archive as it does by default; what is far is not asked for each header.

    Raises:
        CheckpointError: they are compressed or encrypted.
    """
    _check_is_plain(ranges, entry)
    behind = entry.header + _HEADER.size + len(entry.name.encode()) + _PADDING
    return -(-behind // _ALIGNMENT) * _ALIGNMENT, entry.nbytes


def _check_is_plain(ranges: Ranges, entry: Entry) -> None:
    if not entry.is_plain:
        raise _damaged(ranges, f"{entry.name!r:.120} is compressed or encrypted, which torch never does")


def _directory_place(ranges: Ranges) -> tuple[int, int]:
    """(offset, size) of the directory, from the end record."""
    file = ranges.file
    start = max(0, file.size - _MAX_COMMENT - _END.size)
    tail = ranges.read(start, file.size - start)
    at = tail.rfind(b"PK\x05\x06", 0, max(0, len(tail) - _END.size + 4))
    if at < 0:
        raise _damaged(ranges, "it has no directory: it is cut off or damaged")
    _, _, _, _, count, size, offset, _ = _END.unpack_from(tail, at)
    end = start + at
    if count == _FULL_16 or _FULL_32 in (size, offset):
        offset, size, end = _large_directory_place(ranges, end)
    if offset + size > end:
        raise _damaged(ranges, "its directory is not where it says: it is cut off or damaged")
    return offset, size


def _large_directory_place(ranges: Ranges, end: int) -> tuple[int, int, int]:
    """(offset, size) of the directory of an archive beyond 4 GB, and where the second end record is."""
    place = ranges.read(max(0, end - _END64_PLACE.size), _END64_PLACE.size)
    if len(place) < _END64_PLACE.size or not place.startswith(b"PK\x06\x07"):
        raise _damaged(ranges, "it has no directory for its size: it is cut off or damaged")
    at = _END64_PLACE.unpack(place)[2]
    record = ranges.read(at, _END64.size) if at < end else b""
    if len(record) < _END64.size or not record.startswith(b"PK\x06\x06"):
        raise _damaged(ranges, "it has no directory for its size: it is cut off or damaged")
    *_, size, offset = _END64.unpack(record)
    return offset, size, at


def _entries(ranges: Ranges, text: bytes) -> Iterator[Entry]:
    at = 0
    while at + _ENTRY.size <= len(text):
        signature, _, _, flags, method, _, _, _, packed, size, name, extra, comment, _, _, _, header = (
            _ENTRY.unpack_from(text, at)
        )
        if signature != b"PK\x01\x02":
            raise _damaged(ranges, "its directory is damaged")
        at += _ENTRY.size
        title, more = text[at : at + name], text[at + name : at + name + extra]
        at += name + extra + comment
        if at > len(text):
            raise _damaged(ranges, "its directory is damaged")
        size, packed, header = _large_values(ranges, more, (size, packed, header))
        is_plain = method == 0 and size == packed and not flags & _ENCRYPTED
        try:
            yield Entry(title.decode("utf-8"), header, size, is_plain)
        except UnicodeDecodeError as error:
            raise _damaged(ranges, "a name in its directory is not UTF-8") from error
    if at != len(text):
        raise _damaged(ranges, "its directory is damaged")


def _large_values(ranges: Ranges, more: bytes, values: tuple[int, int, int]) -> tuple[int, int, int]:
    """(size, packed size, header) of an entry: those that do not fit 32 bits stand, in this order, in `more`."""
    if _FULL_32 not in values:
        return values
    at = 0
    while at + 4 <= len(more):
        kind, length = struct.unpack_from("<HH", more, at)
        if kind == _ZIP64:
            block = more[at + 4 : at + 4 + length]
            wanted = values.count(_FULL_32)
            if len(block) < 8 * wanted:
                break
            large = iter(struct.unpack_from(f"<{wanted}Q", block))
            size, packed, header = (next(large) if value == _FULL_32 else value for value in values)
            return size, packed, header
        at += 4 + length
    raise _damaged(ranges, "its directory is damaged")


def _damaged(ranges: Ranges, what: str) -> CheckpointError:
    return CheckpointError(f"{ranges.file.path}: cannot be read as weights saved by torch: {what}")
