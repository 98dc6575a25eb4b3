"""The zarr.json of an entry: a group's for a record, an array's for a tensor, sealed against flipped bytes.

    {"zarr_format": 3, "node_type": "group", "attributes": {"mergeflow": {
        "format": 1, "kind": "record", "key": ..., "about": {...}, "record": {...}, "seal": "..."}}}

It is written and read without zarr, because looking ten thousand keys up may not cost an import of zarr, and publishing
a statistic may not cost more than computing it. The seal is the last thing in the text: blake3 of every byte before it.
So one comparison tells whether any byte of the document changed, whitespace included, before anything in it is
believed. `about` is for people (which operation, which step); nothing depends on it. The key stands inside, so that a
folder that was renamed by hand is not taken for another value.

A document with a good seal and another `format` was written by another version of mergeflow: a miss, not damage.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from blake3 import blake3

from mergeflow.cache.layout import Layout
from mergeflow.cache.values import from_json, to_json
from mergeflow.dtypes import DType, by_name
from mergeflow.errors import CorruptEntry

FORMAT = 1
EntryKind = Literal["record", "tensor"]

_SEAL_DIGITS = 32
_SEAL_OPENS = b',"seal":"'
_SEAL_CLOSES = b'"}}}'
_SEAL_BYTES = len(_SEAL_OPENS) + _SEAL_DIGITS + len(_SEAL_CLOSES)


@dataclass(frozen=True, slots=True)
class RecordDocument:
    """A record, with what people should know about it. Its values are decoded when they are asked for."""

    encoded: dict[str, object]
    about: dict[str, object]

    @property
    def record(self) -> dict[str, object]:
        """The record as it was written."""
        return _mapping(from_json(self.encoded))


@dataclass(frozen=True, slots=True)
class TensorDocument:
    """A tensor's number format and how it is cut; its values are in the file that `layout` names."""

    dtype: DType
    layout: Layout
    about: dict[str, object]


Document = RecordDocument | TensorDocument


def encode_record(key: str, record: Mapping[str, object], about: Mapping[str, object]) -> bytes:
    """The zarr.json of a record."""
    details = {"about": to_json(about), "record": to_json(record)}
    return _sealed({"zarr_format": 3, "node_type": "group"}, "record", key, details)


def encode_tensor(key: str, dtype: DType, layout: Layout, about: Mapping[str, object]) -> bytes:
    """The zarr.json of a tensor: little-endian chunks with a CRC32C each, all in one shard when there are several."""
    numbers = {"name": "bytes"} if dtype.itemsize == 1 else {"name": "bytes", "configuration": {"endian": "little"}}
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    codecs: list[object] = [numbers, {"name": "crc32c"}]
    if layout.has_index:
        shard = {
            "chunk_shape": layout.chunk,
            "codecs": codecs,
            "index_codecs": [little, {"name": "crc32c"}],
            "index_location": "end",
        }
        codecs = [{"name": "sharding_indexed", "configuration": shard}]
    stored_shape = layout.padded_shape if layout.has_index else layout.chunk
    head = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": layout.shape,
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": stored_shape}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": _ZERO[dtype.kind],
        "codecs": codecs,
    }
    return _sealed(head, "tensor", key, {"about": to_json(about), "chunk": layout.chunk})


def decode(key: str, text: bytes) -> Document | None:
    """What the zarr.json `text` of the entry `key` says; None when it is of a format this version does not know.

    Raises:
        CorruptEntry: a byte changed since it was written, or it is the document of another key.
    """
    if not _seal_holds(text):
        raise CorruptEntry(key, "zarr.json was changed or cut short")
    try:
        return _decode_sealed(key, text)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptEntry(key, f"zarr.json has not the fields it should have: {error!r}") from error


def _decode_sealed(key: str, text: bytes) -> Document | None:
    node = _mapping(json.loads(text))
    ours = _mapping(_mapping(node["attributes"])["mergeflow"])
    if ours["format"] != FORMAT:
        return None
    if ours["key"] != key:
        raise CorruptEntry(key, f"it is the value of {ours['key']}")
    about = _mapping(from_json(ours["about"]))
    if ours["kind"] == "record":
        return RecordDocument(_mapping(ours["record"]), about)
    dtype = by_name(str(node["data_type"]))
    layout = Layout(_integers(node["shape"]), _integers(ours["chunk"]), dtype.itemsize)
    return TensorDocument(dtype, layout, about)


def _sealed(head: Mapping[str, object], kind: EntryKind, key: str, details: Mapping[str, object]) -> bytes:
    """The node `head` with our attributes, and at the very end the digest of all that stands before it."""
    ours = {"format": FORMAT, "kind": kind, "key": key, **details}
    node = {**head, "attributes": {"mergeflow": ours}}
    text = json.dumps(node, separators=(",", ":"), allow_nan=False).encode("ascii")
    body = text.removesuffix(b"}}}")
    return body + _SEAL_OPENS + _digest(body) + _SEAL_CLOSES


def _seal_holds(text: bytes) -> bool:
    body, tail = text[:-_SEAL_BYTES], text[-_SEAL_BYTES:]
    return tail == _SEAL_OPENS + _digest(body) + _SEAL_CLOSES


def _digest(body: bytes) -> bytes:
    return blake3(body).hexdigest()[:_SEAL_DIGITS].encode("ascii")


def _mapping(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, found {type(value).__name__}")
    return value


def _integers(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
        raise TypeError("expected a list of whole numbers")
    return tuple(value)


# What zarr readers return for a chunk that was never written. Ours always are; the field is required.
_ZERO: dict[str, object] = {"float": 0.0, "integer": 0, "boolean": False}
