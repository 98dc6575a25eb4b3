"""The order in which names are listed, everywhere: layers 2 before 10.

A run of digits compares as a number, everything else as text. Names that differ only in leading zeros keep a fixed
order by their text, so that sorting never depends on the order it was given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_DIGITS = re.compile(r"[0-9]+")
# Wide enough for any 64-bit number; longer runs of digits still have a fixed order, only not the numeric one.
_WIDTH = 20


def natural(name: str) -> tuple[str, str]:
    """The sort key of a name: ``layers.10`` comes after ``layers.2``."""
    return _DIGITS.sub(_padded, name), name


def in_natural_order(names: Iterable[str]) -> list[str]:
    """The names, sorted so that layers 2 comes before 10."""
    return sorted(names, key=natural)


def _padded(digits: re.Match[str]) -> str:
    return digits.group().zfill(_WIDTH)
