"""gguf: a matrix as GGUF files hold it, quantised in blocks, as the float32 numbers that its blocks stand for.

A row is cut into blocks of 32 elements, or of 256 (the "K" formats); a block's bytes hold its scale and its small
integers. With d (and the minimum m, or the scales s of 16 or 32 elements each) as the block gives them:

    Q8_0   d * q                  q of 8 bits
    Q4_0   d * (q - 8)            q of 4 bits           Q4_1   d * q + m
    Q5_0   d * (q - 16)           q of 5 bits           Q5_1   d * q + m
    Q2_K   (d*s) * q - (dmin*t)   q of 2, s, t of 4     Q3_K   (d * (s - 32)) * (q - 4)   q of 3, s of 6
    Q4_K   (d*s) * q - (dmin*t)   q of 4, s, t of 6     Q5_K   as Q4_K                    q of 5
    Q6_K   (d*s) * (q - 32)       q of 6, s of 8

Every operation is one in float32, in the order written, as in ggml's own reference: the same numbers, bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from mergeflow.methods.views.protocols import Part, elements, numpy_dtype

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

# Elements decoded at a time: what is in work then (a few float32 arrays) stays in the processor's cache.
AT_ONCE = 1 << 17
_F32 = np.float32


class GgufBlocks:
    """The view. One part: the tensor's bytes (uint8). `parameters["format"]` is the name of its type: ``Q4_K``."""

    def __init__(
        self, parts: Sequence[Part], parameters: Mapping[str, object], dtype: str, shape: tuple[int, ...]
    ) -> None:
        (self._bytes,) = parts
        self._block, self._block_bytes, self._decode = _FORMATS[cast(str, parameters["format"])]
        self._dtype = numpy_dtype(dtype)

    def read(self, start: int, out: memoryview) -> None:
        wanted = np.frombuffer(out, self._dtype)
        for done in range(0, len(wanted), AT_ONCE):
            piece = wanted[done : done + AT_ONCE]
            piece[:] = self._elements(start + done, len(piece))

    def _elements(self, start: int, count: int) -> Floats:
        """`count` elements from flat index `start` on: the blocks that hold them, and what is around cut off."""
        first, last = start // self._block, -(-(start + count) // self._block)
        raw = elements(self._bytes, first * self._block_bytes, (last - first) * self._block_bytes)
        # A hostile or damaged scale may be infinite or no number: that is the tensor's value, not our trouble.
        with np.errstate(all="ignore"):
            decoded = self._decode(raw.view(np.uint8).reshape(-1, self._block_bytes))  # (blocks, block)
        skipped = start - first * self._block
        return decoded.reshape(-1)[skipped : skipped + count]


def _half(raw: Bytes) -> Floats:
    """Two bytes a block, a float16: (blocks, 2) -> (blocks, 1)."""
    return np.ascontiguousarray(raw).view("<f2").astype(_F32)


def _nibbles(raw: Bytes) -> Bytes:
    """The low halves of all bytes, then the high halves: (..., n) -> (..., 2n)."""
    return np.concatenate([raw & 0x0F, raw >> 4], axis=-1)


def _bits(raw: Bytes) -> Bytes:
    """Four bytes a block, bit i for element i: (blocks, 4) -> (blocks, 32)."""
    return np.unpackbits(raw, axis=-1, bitorder="little")


def _q8_0(raw: Bytes) -> Floats:
    return _half(raw[:, :2]) * raw[:, 2:].view(np.int8).astype(_F32)


def _q4_0(raw: Bytes) -> Floats:
    return _half(raw[:, :2]) * (_nibbles(raw[:, 2:]).astype(_F32) - _F32(8))


def _q4_1(raw: Bytes) -> Floats:
    return _half(raw[:, :2]) * _nibbles(raw[:, 4:]).astype(_F32) + _half(raw[:, 2:4])


def _q5_0(raw: Bytes) -> Floats:
    q = _nibbles(raw[:, 6:]) | (_bits(raw[:, 2:6]) << 4)
    return _half(raw[:, :2]) * (q.astype(_F32) - _F32(16))


def _q5_1(raw: Bytes) -> Floats:
    q = _nibbles(raw[:, 8:]) | (_bits(raw[:, 4:8]) << 4)
    return _half(raw[:, :2]) * q.astype(_F32) + _half(raw[:, 2:4])


def _pairs(raw: Bytes) -> Bytes:
    """Two bits an element, 128 elements of 32 bytes, by bit place: (blocks, 64) -> (blocks, 2, 4, 32)."""
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    return (raw.reshape(-1, 2, 1, 32) >> shifts) & np.uint8(3)


def _by_place(raw: Bytes) -> Bytes:
    """One bit an element, 256 elements of 32 bytes, by bit place: (blocks, 32) -> (blocks, 8, 32)."""
    return (raw[:, None, :] >> np.arange(8, dtype=np.uint8).reshape(1, 8, 1)) & np.uint8(1)


def _q2_k(raw: Bytes) -> Floats:
    scales, q = raw[:, :16], _pairs(raw[:, 16:80]).reshape(-1, 16, 16)
    s = _half(raw[:, 80:82]) * (scales & 0x0F).astype(_F32)  # (blocks, 16)
    t = _half(raw[:, 82:84]) * (scales >> 4).astype(_F32)
    return s[:, :, None] * q.astype(_F32) - t[:, :, None]


def _q3_k(raw: Bytes) -> Floats:
    packed = raw[:, 96:108]
    high = (packed[:, None, 8:] >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 4, 1)) & 3  # (blocks, 4, 4)
    six = (_nibbles(packed[:, :8]) | (high.reshape(-1, 16) << 4)).astype(_F32) - _F32(32)
    s = _half(raw[:, 108:110]) * six
    # A third bit for each element, of byte l for elements l, l + 32, ..., by bit place.
    third = _by_place(raw[:, :32])  # (blocks, 8, 32)
    q = _pairs(raw[:, 32:96]).reshape(-1, 8, 32) | (third << 2)
    values: Floats = s[:, :, None] * (q.reshape(-1, 16, 16).astype(_F32) - _F32(4))
    return values


def _scales_and_minima(raw: Bytes) -> tuple[Floats, Floats]:
    """d * s and dmin * t of Q4_K and Q5_K, whose first 16 bytes are alike: both (blocks, 8, 1).

    Six bits each in twelve bytes: the first four of s, and of t, are the low six bits of bytes 0 to 3, and 4 to 7;
    the others have their low four bits in bytes 8 to 11 and their high two on top of those.
    """
    low_s, low_t, rest = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]
    s = np.concatenate([low_s & 63, (rest & 0x0F) | ((low_s >> 6) << 4)], axis=-1)
    t = np.concatenate([low_t & 63, (rest >> 4) | ((low_t >> 6) << 4)], axis=-1)
    scales, minima = _half(raw[:, :2]) * s.astype(_F32), _half(raw[:, 2:4]) * t.astype(_F32)
    return scales[:, :, None], minima[:, :, None]


def _q4_k(raw: Bytes) -> Floats:
    s, t = _scales_and_minima(raw)
    q = _nibbles(raw[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return s * q.astype(_F32) - t


def _q5_k(raw: Bytes) -> Floats:
    s, t = _scales_and_minima(raw)
    fifth = _by_place(raw[:, 16:48])  # (blocks, 8, 32)
    q = _nibbles(raw[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32) | (fifth << 4)
    return s * q.astype(_F32) - t


def _q6_k(raw: Bytes) -> Floats:
    low = _nibbles(raw[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    q = low | (_pairs(raw[:, 128:192]) << 4)
    s = _half(raw[:, 208:210]) * raw[:, 192:208].view(np.int8).astype(_F32)  # (blocks, 16)
    return s[:, :, None] * (q.reshape(-1, 16, 16).astype(_F32) - _F32(32))


# type -> elements of a block, its bytes, and how it is decoded: (blocks, bytes) -> (blocks, elements)
_FORMATS: Mapping[str, tuple[int, int, Callable[[Bytes], Floats]]] = {
    "Q4_0": (32, 18, _q4_0),
    "Q4_1": (32, 20, _q4_1),
    "Q5_0": (32, 22, _q5_0),
    "Q5_1": (32, 24, _q5_1),
    "Q8_0": (32, 34, _q8_0),
    "Q2_K": (256, 84, _q2_k),
    "Q3_K": (256, 110, _q3_k),
    "Q4_K": (256, 144, _q4_k),
    "Q5_K": (256, 176, _q5_k),
    "Q6_K": (256, 210, _q6_k),
}
