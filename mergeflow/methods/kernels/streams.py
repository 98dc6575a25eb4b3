"""The streams of random numbers that masks are made of: `counter_random` defines them, this finds what names one.

Plain integers: whatever draws the numbers, torch or the native library, begins here.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

BITS = 24
NUMBERS = 1 << BITS
HALF = 1 << 31
LEAST_CHANGES_OF_STEP = 24


@dataclass(frozen=True, slots=True)
class Stream:
    """The numbers of one tensor under one seed: `start` and `step` in [0, 2^64), the step odd."""

    start: int
    step: int


def stream_of(seed: int, key: str) -> Stream:
    """The stream of the tensor known by `key`, under a seed."""
    digest = hashlib.blake2b(f"mergeflow random 1\n{seed}\n{key}".encode(), digest_size=16).digest()
    start, step = (int.from_bytes(digest[at : at + 8], "little") for at in (0, 8))
    step |= 1
    if (step ^ (step >> 1)).bit_count() < LEAST_CHANGES_OF_STEP:
        step ^= 0xAAAAAAAAAAAAAAAA
    return Stream(start, step)


def bound(probability: float) -> int:
    """The largest v that is kept with this probability, 0 < probability <= 1; exact."""
    return 256 * math.ceil(probability * NUMBERS) - HALF - 1
