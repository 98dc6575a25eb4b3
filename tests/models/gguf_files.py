"""GGUF files written by hand, sound and broken: the bytes of the format, not a library's idea of them."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

F32, F16, Q8_0 = 0, 1, 8
BLOCK = {F32: (1, 4), F16: (1, 2), Q8_0: (32, 34)}

Tensors = Mapping[str, tuple[int, tuple[int, ...]]]

METADATA: Mapping[str, object] = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.context_length": 64,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 32,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.tokens": ["a", "b"],
}
LAYER: Tensors = {
    "blk.0.attn_norm.weight": (F32, (32,)),
    "blk.0.attn_q.weight": (Q8_0, (32, 32)),
    "blk.0.attn_k.weight": (F16, (16, 32)),
    "blk.0.attn_v.weight": (Q8_0, (16, 32)),
    "blk.0.attn_output.weight": (F32, (32, 32)),
    "blk.0.ffn_norm.weight": (F32, (32,)),
    "blk.0.ffn_gate.weight": (Q8_0, (32, 32)),
    "blk.0.ffn_up.weight": (Q8_0, (32, 32)),
    "blk.0.ffn_down.weight": (Q8_0, (32, 32)),
}
TENSORS: Tensors = {"token_embd.weight": (Q8_0, (8, 32)), **LAYER, "output_norm.weight": (F32, (32,))}


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(found: object) -> bytes:
    """A value of the metadata with its type in front."""
    if isinstance(found, bool):
        return struct.pack("<I?", 7, found)
    if isinstance(found, int):
        return struct.pack("<II", 4, found)
    if isinstance(found, float):
        return struct.pack("<If", 6, found)
    if isinstance(found, str):
        return struct.pack("<I", 8) + text(found)
    assert isinstance(found, list)
    items = [value(item) for item in found]
    kind = items[0][:4] if items else struct.pack("<I", 4)
    return struct.pack("<I", 9) + kind + struct.pack("<Q", len(items)) + b"".join(item[4:] for item in items)


def nbytes(kind: int, shape: Sequence[int]) -> int:
    elements, size = BLOCK[kind]
    return math.prod(shape) // elements * size


def gguf_bytes(
    metadata: Mapping[str, object] = METADATA,
    tensors: Tensors = TENSORS,
    *,
    version: int = 3,
    offsets: Mapping[str, int] | None = None,
    alignment: int = 32,
) -> bytes:
    """A file of these tensors, filled with a pattern; `offsets` replaces where some of them are said to be."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(text(key) + value(found) for key, found in metadata.items())
    data = b""
    for name, (kind, shape) in tensors.items():
        offset = (offsets or {}).get(name, len(data))
        lengths = struct.pack(f"<{len(shape)}Q", *reversed(shape))
        head += text(name) + struct.pack("<I", len(shape)) + lengths + struct.pack("<IQ", kind, offset)
        size = nbytes(kind, shape) if kind in BLOCK else 32
        # Small exponents, so that float16 and float32 read from the pattern are finite.
        data += bytes((place * 7 + len(data)) % 60 for place in range(size))
        data += b"\0" * (-len(data) % alignment)
    return head + b"\0" * (-len(head) % alignment) + data


def write_gguf(path: Path, content: bytes | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gguf_bytes() if content is None else content)
    return path
