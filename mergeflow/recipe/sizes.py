"""Sizes in bytes, as recipes and flags write them: 5000000, 500MB, 5GB, 2GiB, and mergekit's 500M and 5B."""

from __future__ import annotations

import re

# mergekit's K, M and B are powers of ten (its B is a billion); KB, MB, GB are taken the same way, KiB... binary.
UNITS = {
    "": 1,
    **dict.fromkeys(("k", "kb"), 10**3),
    **dict.fromkeys(("m", "mb"), 10**6),
    **dict.fromkeys(("g", "gb", "b"), 10**9),
    **dict.fromkeys(("t", "tb"), 10**12),
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SIZE = re.compile(r"\s*([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([a-zA-Z]{0,3})\s*")


def parse_size(text: str) -> int:
    """The number of bytes `text` stands for.

    Raises:
        ValueError: not a number with one of the units.
    """
    match = _SIZE.fullmatch(text)
    if match is None or match[2].lower() not in UNITS:
        raise ValueError(f"{text[:40]!r} is not a size: write a number of bytes, or one such as 500MB, 5GB or 5GiB")
    number, unit = match[1], UNITS[match[2].lower()]
    return int(number) * unit if "." not in number else round(float(number) * unit)
