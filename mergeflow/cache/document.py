"""The zarr.json of an entry: a group's for a record, an array's for a tensor, sealed against flipped bytes.

    {"zarr_format": 3, "node_type": "group", "attributes": {"mergeflow": {
        "format": 1, "kind": "record", "key": ..., "about": {...}, "record": {...}, "seal": "..."}}}

It is written and read without zarr, because looking ten thousand keys up may not cost an import of zarr, and publishing
a statistic may not cost more than computing it. The seal is the last thing in the text: blake3 of every byte before it.
So one comparison tells whether any byte of the document changed, whitespace included, before anything in it is
believed. `about` is for people (which operation, which step); nothing depends on it. The key stands inside, so that a
folder that was renamed by hand is not taken for another value.

A document with a good seal and another `format` was written by another version of mergeflow: a miss, not damage.

In a store that is shared, a tensor's document also says the blake3 `digest` of its file of chunks, so that no byte of
either can change unnoticed. The plain seal finds accidents: whoever can write a document can seal it. A document that
is sealed with a secret can be written only by those who know that (`Secret`, a keyed blake3).

What is read here may come from strangers, so that a good seal says nothing about the fields: each is checked.
"""

from __future__ import annotations

import hmac
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
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

# More than any tensor has, and what other readers of zarr allow.
_MOST_DIMENSIONS = 32
_MOST_ELEMENTS = 1 << 62
# Ours are 1 MiB (`layout`); a reader holds one chunk in memory.
_MOST_CHUNK_BYTES = 1 << 26
_DIGEST_DIGITS = 64


@dataclass(frozen=True, slots=True)
class Secret:
    """The key with which documents of a shared store are sealed, known to those who may write into it."""

    key: bytes = field(repr=False)  # 32 bytes

    @classmethod
    def of(cls, text: str) -> Secret:
        """The key that a text, such as ``$MERGEFLOW_CACHE_SECRET``, stands for."""
        return cls(blake3(text.encode("utf-8"), derive_key_context="mergeflow 2026-11 seal of a shared cache").digest())


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
    """A tensor's number format and how it is cut; its values are in the file that `layout` names.

    Args:
        digest: the blake3 of that file, in hexadecimal; None where nobody asked for one.
    """

    dtype: DType
    layout: Layout
    about: dict[str, object]
    digest: str | None = None


Document = RecordDocument | TensorDocument


def encode_record(key: str, record: Mapping[str, object], about: Mapping[str, object]) -> bytes:
    """The zarr.json of a record."""
    details = {"about": to_json(about), "record": to_json(record)}
    return _sealed({"zarr_format": 3, "node_type": "group"}, "record", key, details)


def encode_tensor(
    key: str, dtype: DType, layout: Layout, about: Mapping[str, object], digest: str | None = None
) -> bytes:
    """The zarr.json of a tensor: little-endian chunks with a CRC32C each, all in one shard when there are several.

    Args:
        digest: the blake3 of the file of chunks, in hexadecimal, for a tensor that is shared.
    """
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
    details: dict[str, object] = {"about": to_json(about), "chunk": layout.chunk}
    return _sealed(head, "tensor", key, details if digest is None else {**details, "digest": digest})


def sealed_with(text: bytes, secret: Secret | None) -> bytes:
    """The document `text` with its seal made anew: with `secret`, or the plain one."""
    body = text[:-_SEAL_BYTES]
    return body + _SEAL_OPENS + _digest(body, secret) + _SEAL_CLOSES


def decode(key: str, text: bytes, secret: Secret | None = None) -> Document | None:
    """What the zarr.json `text` of the entry `key` says; None when it is of a format this version does not know.

    Args:
        secret: what it must be sealed with; None for the plain seal.

    Raises:
        CorruptEntry: a byte changed since it was written, it is not sealed with the secret, it is the document of
            another key, or it says what no tensor can be.
    """
    if not _seal_holds(text, secret):
        if secret is not None and _seal_holds(text, None):
            raise CorruptEntry(key, "zarr.json is not sealed with $MERGEFLOW_CACHE_SECRET")
        raise CorruptEntry(key, "zarr.json was changed or cut short" + (" (or has another secret)" if secret else ""))
    try:
        return _decode_sealed(key, text)
    except RecursionError as error:
        raise CorruptEntry(key, "zarr.json is nested too deeply") from error
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
    layout = _layout(_integers(node["shape"]), _integers(ours["chunk"]), dtype)
    return TensorDocument(dtype, layout, about, _digest_text(ours.get("digest")))


def _layout(shape: tuple[int, ...], chunk: tuple[int, ...], dtype: DType) -> Layout:
    """The layout of these shapes; ValueError when no tensor of ours has it."""
    if len(shape) != len(chunk) or len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"{len(shape)} dimensions in chunks of {len(chunk)}")
    if any(step < 1 for step in chunk) or math.prod(max(1, extent) for extent in shape) > _MOST_ELEMENTS:
        raise ValueError("a shape that no tensor has")
    if math.prod(chunk) * dtype.itemsize > _MOST_CHUNK_BYTES:
        raise ValueError("chunks larger than memory may hold")
    # A chunk is a contiguous run: single indices, then one range, then dimensions as they are (see `layout`).
    cut = next((axis for axis, step in enumerate(chunk) if step > 1), len(chunk))
    if any(step != max(1, extent) for step, extent in zip(chunk[cut + 1 :], shape[cut + 1 :], strict=True)):
        raise ValueError("chunks that are no contiguous runs")
    return Layout(shape, chunk, dtype.itemsize)


def _digest_text(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) != _DIGEST_DIGITS or set(value) - set("0123456789abcdef"):
        raise ValueError("a digest is 64 hexadecimal digits")
    return value


def _sealed(head: Mapping[str, object], kind: EntryKind, key: str, details: Mapping[str, object]) -> bytes:
    """The node `head` with our attributes, and at the very end the digest of all that stands before it."""
    ours = {"format": FORMAT, "kind": kind, "key": key, **details}
    node = {**head, "attributes": {"mergeflow": ours}}
    text = json.dumps(node, separators=(",", ":"), allow_nan=False).encode("ascii")
    body = text.removesuffix(b"}}}")
    return body + _SEAL_OPENS + _digest(body) + _SEAL_CLOSES


def _seal_holds(text: bytes, secret: Secret | None) -> bool:
    body, tail = text[:-_SEAL_BYTES], text[-_SEAL_BYTES:]
    # Takes the same time wherever they differ, so that a seal cannot be guessed digit by digit.
    return hmac.compare_digest(tail, _SEAL_OPENS + _digest(body, secret) + _SEAL_CLOSES)


def _digest(body: bytes, secret: Secret | None = None) -> bytes:
    found = blake3(body) if secret is None else blake3(body, key=secret.key)
    return found.hexdigest()[:_SEAL_DIGITS].encode("ascii")


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
