"""Sizes and times as people read and write them."""

from __future__ import annotations

import re

_FACTORS = {"": 1, "B": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_BINARY = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def size_text(count: float) -> str:
    """A number of bytes, such as ``2.2 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def seconds_text(seconds: float) -> str:
    """A duration, such as ``0.42 s`` or ``3 min 05 s``."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"


def parse_age(text: str) -> float:
    """Seconds of ``7d``, ``12h``, ``30m``, ``2w`` or ``90s``.

    Raises:
        ValueError: it is none of these.
    """
    match = re.fullmatch(r"\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*([smhdw])\s*", text, re.IGNORECASE)
    if match is None:
        raise ValueError(f"{text!r} is not an age: write 7d, 12h, 30m or 2w")
    return float(match[1]) * _SECONDS[match[2].lower()]


def parse_memory(text: str) -> int:
    """Bytes of ``512MB``, ``1.5GiB``, ``800M`` or a plain number.

    Raises:
        ValueError: it is none of these.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if match is None or (match[3] and not match[2]):
        raise ValueError(f"{text!r} is not a size: write 512MB, 1.5GiB or a number of bytes")
    unit = match[2].upper()
    return int(float(match[1]) * (_BINARY[unit] if match[3] else _FACTORS[unit]))
