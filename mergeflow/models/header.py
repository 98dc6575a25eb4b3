"""Safetensors headers, read and validated before anything in them is believed.

    8 bytes        N, little-endian
    N bytes        JSON: {"name": {"dtype", "shape", "data_offsets": [begin, end]}, ..., "__metadata__": {text: text}}
    the rest       the tensors' bytes; offsets count from here

A header decides where we read, how much memory we take and what we multiply, so it is held to the format's own rules:
every byte of the file belongs to exactly one tensor (no holes, no overlaps, nothing left over), and each tensor's
offsets are those of its shape and dtype. A file cut off by an interrupted download fails here, not in the middle of a
merge.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mergeflow.dtypes import DTYPES, DType
from mergeflow.errors import CheckpointError
from mergeflow.models.identity import identify
from mergeflow.models.records import FileIdentity, Segment, TensorSource
from mergeflow.models.strict_json import parse_object

PREFIX_BYTES = 8
# The format's own limit. Ten thousand tensors take about 1 MB.
MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 64
MAX_EXTENT = 2**63 - 1
_LFS_POINTER = b"version "
_METADATA = "__metadata__"
# What the header of a delta says, so that nobody takes it for weights.
DELTA_MARK = ("mergeflow.type", "delta")
_DTYPES: Mapping[object, DType] = {dtype.code: dtype for dtype in DTYPES}


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file says it holds; `tensors` in the order of their bytes."""

    file: FileIdentity
    tensors: Mapping[str, TensorSource]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """The header of a safetensors file on this machine; no byte of a tensor is read.

    Raises:
        CheckpointError: the file cannot be read, is not a safetensors file, or does not keep the format's rules.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{path}: not a file")
        with path.open("rb") as stream:
            file = identify(stream.fileno(), os.fspath(path))
            length = header_bytes(stream.read(PREFIX_BYTES), file)
            text = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    return parse_header(text, file)


def header_bytes(prefix: bytes, file: FileIdentity) -> int:
    """The length of the header's JSON, from a file's first eight bytes.

    Raises:
        CheckpointError: the file is too short, or claims a header it cannot hold.
    """
    if prefix == _LFS_POINTER:
        raise CheckpointError(f"{file.path}: a Git LFS pointer, not the weights; run `git lfs pull` in its folder")
    if file.size < PREFIX_BYTES or len(prefix) < PREFIX_BYTES:
        raise CheckpointError(f"{file.path}: {file.size} bytes are too few for a safetensors file")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"{file.path}: claims a header of {length} bytes; no safetensors header is that long")
    if length > file.size - PREFIX_BYTES:
        raise CheckpointError(
            f"{file.path}: claims a header of {length} bytes in a file of {file.size}; it is cut off or damaged"
        )
    return length


def parse_header(text: bytes, file: FileIdentity) -> Header:
    """The header whose JSON is `text`: the bytes of `file` after the first eight.

    Raises:
        CheckpointError: names the file, the tensor and the rule that is broken.
    """
    if not text.startswith(b"{"):
        raise CheckpointError(f"{file.path}: the header does not start with '{{'; not a safetensors file")
    entries = parse_object(text, f"{file.path}: header", unique=True)
    metadata = _metadata(entries.pop(_METADATA, {}), file)
    start = PREFIX_BYTES + len(text)
    found = [_tensor(name, entry, file, start) for name, entry in entries.items()]
    found.sort(key=_extent)
    _check_every_byte_has_one_owner(found, file, start)
    return Header(file, {source.name: source for source in found}, metadata)


def _tensor(name: str, entry: object, file: FileIdentity, start: int) -> TensorSource:
    """One entry of the header, checked on its own."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise _wrong(file, name, "needs a dtype, a shape and data_offsets")
    _check_name(name, file)
    dtype = _DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        scales = "; such scales belong to packed weights: merge the model it was made from"
        hint = scales if entry["dtype"] == "F8_E8M0" else ""
        raise _wrong(file, name, f"has dtype {entry['dtype']!r:.40}, which this version cannot read{hint}")
    shape = _shape(entry["shape"])
    if shape is None:
        raise _wrong(file, name, f"has shape {entry['shape']!r:.60}; a list of whole numbers from 0 on was expected")
    offsets = entry["data_offsets"]
    if not isinstance(offsets, list) or len(offsets) != 2 or any(type(offset) is not int for offset in offsets):
        raise _wrong(file, name, f"has data_offsets {offsets!r:.60}; two whole numbers were expected")
    begin, end = offsets
    if not 0 <= begin <= end:
        raise _wrong(file, name, f"has data_offsets [{begin}, {end}], which run backwards")
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes != end - begin:
        raise _wrong(file, name, f"takes {nbytes} bytes as {dtype} of shape {shape}, but has {end - begin}")
    if start + end > file.size:
        beyond = start + end - file.size
        raise _wrong(file, name, f"ends {beyond} bytes beyond the end of the file: it is cut off or damaged")
    return TensorSource(name, dtype, shape, (Segment(file, start + begin, nbytes),))


def _check_name(name: str, file: FileIdentity) -> None:
    """A name must be text that can be written again: JSON can spell halves of characters."""
    if not name.isascii():
        try:
            name.encode("utf-8")
        except UnicodeEncodeError as error:
            raise _wrong(file, name, "has a name that is not valid Unicode") from error


def _shape(value: object) -> tuple[int, ...] | None:
    """The shape, or None when it is not one. `True` is an int to Python, but no extent."""
    if not isinstance(value, list) or len(value) > MAX_DIMENSIONS:
        return None
    if any(type(extent) is not int or not 0 <= extent <= MAX_EXTENT for extent in value):
        return None
    return tuple(value)


def _metadata(value: object, file: FileIdentity) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise CheckpointError(f"{file.path}: {_METADATA} must map text to text")
    return value


def _extent(source: TensorSource) -> tuple[int, int]:
    segment = source.segments[0]
    return segment.offset, segment.offset + segment.nbytes


def _check_every_byte_has_one_owner(found: list[TensorSource], file: FileIdentity, start: int) -> None:
    """`found` is sorted by offset: each tensor starts where the one before ends, the last ends with the file."""
    reached, previous = start, "the header"
    for source in found:
        begin, end = _extent(source)
        if begin < reached:
            raise _wrong(file, source.name, f"overlaps {previous} by {reached - begin} bytes")
        if begin > reached:
            raise _wrong(file, source.name, f"leaves a hole of {begin - reached} bytes after {previous}")
        reached, previous = end, repr(source.name)
    if reached != file.size:
        raise CheckpointError(f"{file.path}: {file.size - reached} bytes after {previous} belong to no tensor")


def _wrong(file: FileIdentity, name: str, what: str) -> CheckpointError:
    return CheckpointError(f"{file.path}: tensor {name!r:.120} {what}")
