"""Random numbers from a counter: right by the published vectors, random by statistics, the same however they are cut."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from mergeflow.methods.kernels.counter_random import random_integers, uniform
from mergeflow.methods.kernels.streams import Stream, bound, stream_of

# SplitMix64 from the start 1234567 with the golden step: the first words of the reference implementation.
GOLDEN_STEP = 0x9E3779B97F4A7C15
PUBLISHED = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]

MANY = 1 << 20


def integers(stream: Stream, start: int, count: int, device: str = "cpu") -> Tensor:
    """The integers of some elements, in memory of their own."""
    buffers = (torch.full((count,), torch.nan, device=device), torch.full((count,), torch.nan, device=device))
    return random_integers(stream, start, count, buffers).clone()


def numbers(seed: int = 0, key: str = "a tensor", start: int = 0, count: int = MANY) -> NDArray[np.float64]:
    return uniform(stream_of(seed, key), start, count).double().numpy()


def written_out(stream: Stream, index: int) -> int:
    """The integer of one element, as the docstring says it, in Python's integers."""
    wrap = 2**64
    z = (stream.start + (index // 2 + 1) * stream.step) % wrap
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % wrap
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % wrap
    z ^= z >> 31
    half = (z >> 32) if index % 2 else z % 2**32
    return half - 2**32 if half >= 2**31 else half


def test_words_are_the_published_ones() -> None:
    """The words of a stream are SplitMix64's, the low half of each first."""
    words = integers(Stream(1234567, GOLDEN_STEP), 0, 2 * len(PUBLISHED)).view(torch.int64)
    assert [word % 2**64 for word in words.tolist()] == PUBLISHED


@given(st.integers(0, 2**64 - 1), st.text(max_size=5), st.integers(0, 2**40), st.integers(0, 9))
def test_an_element_is_what_the_formula_says(seed: int, key: str, start: int, count: int) -> None:
    """Every element is the documented function of seed, key and index, wherever a block begins and ends."""
    stream = stream_of(seed, key)
    assert integers(stream, start, count).tolist() == [written_out(stream, start + i) for i in range(count)]


def test_a_stream_is_made_of_seed_and_key() -> None:
    """The written rule: two halves of a digest, the step odd."""
    digest = hashlib.blake2b(b"mergeflow random 1\n7\nkey", digest_size=16).digest()
    stream = stream_of(7, "key")
    assert stream.start == int.from_bytes(digest[:8], "little")
    assert stream.step == int.from_bytes(digest[8:], "little") | 1


def test_steps_change_their_bits_often() -> None:
    """Every step is odd and has at least 24 places where neighbouring bits differ."""
    for seed in range(20000):
        step = stream_of(seed, "x").step
        assert step % 2 == 1
        assert (step ^ (step >> 1)).bit_count() >= 24


@pytest.mark.parametrize("cut", [1, 2, 7, 4096, 65536])
def test_blocks_leave_no_trace(cut: int) -> None:
    """However a range is cut into blocks, each element has the same number."""
    stream, count = stream_of(1, "x"), min(cut * 50, 70001)
    parts = [integers(stream, start, min(cut, count - start)) for start in range(0, count, cut)]
    assert torch.equal(torch.cat(parts), integers(stream, 0, count))


def test_a_fixed_mask() -> None:
    """The mask of a seed, a key and a density, once and for all."""
    kept = uniform(stream_of(42, "a tensor"), 0, 65536) < 0.5
    assert "".join("01"[bit] for bit in kept[:48].tolist()) == "001010011101110100010100011000100011000001011010"
    assert hashlib.sha256(np.packbits(kept.numpy()).tobytes()).hexdigest()[:16] == "6bb8bc002fdee078"


def test_the_uniform_distribution() -> None:
    """Mean, variance and a histogram of a thousand bins are those of a uniform distribution on [0, 1)."""
    drawn = numbers()
    assert drawn.min() >= 0.0
    assert drawn.max() < 1.0
    assert abs(drawn.mean() - 0.5) < 5 * math.sqrt(1 / 12 / MANY)
    assert abs(drawn.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / MANY)
    counts = np.bincount((drawn * 1000).astype(int), minlength=1000)
    chi_squared = float(((counts - MANY / 1000) ** 2).sum() / (MANY / 1000))
    assert abs(chi_squared - 999) < 5 * math.sqrt(2 * 999)


def test_every_bit_is_fair() -> None:
    """Each of the 24 bits is set in half of the numbers."""
    values = (numbers() * 2**24).astype(np.int64)
    for bit in range(24):
        assert abs(((values >> bit) & 1).mean() - 0.5) < 5 * 0.5 / math.sqrt(MANY), bit


@pytest.mark.parametrize("lag", [1, 2, 3, 64, 2048, 65536])
def test_neighbours_are_independent(lag: int) -> None:
    """Elements beside each other, or a row apart, are not correlated, nor are the high with the low halves of a word."""
    drawn = numbers()
    assert abs(np.corrcoef(drawn[:-lag], drawn[lag:])[0, 1]) < 5 / math.sqrt(MANY)


@pytest.mark.parametrize(
    ("seed", "key"), [(1, "a tensor"), (2**63, "a tensor"), (0, "b tensor"), (0, ""), (0, "a tensor ")]
)
def test_seeds_and_tensors_are_independent(seed: int, key: str) -> None:
    """Another seed, or another tensor, gives numbers that have nothing to do with the first ones, at any offset."""
    first, second = numbers(), numbers(seed, key)
    for offset in (0, 1, 2):
        length = MANY - offset
        assert abs(np.corrcoef(first[:length], second[offset:])[0, 1]) < 5 / math.sqrt(length)
    both = ((first < 0.5) == (second < 0.5)).mean()
    assert abs(both - 0.5) < 5 * 0.5 / math.sqrt(MANY)


@given(st.floats(0.0, 1.0, exclude_min=True) | st.integers(1, 2**24).map(lambda k: k / 2**24))
def test_the_bound_is_the_probability(probability: float) -> None:
    """v <= bound(p) if and only if u < p, next to the bound too."""
    limit = bound(probability)
    for v in (limit - 256, limit - 1, limit, limit + 1, limit + 256):
        if -(2**31) <= v < 2**31:
            assert (v <= limit) == ((v // 256 + 2**23) / 2**24 < probability)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same_numbers() -> None:
    """The integers of a stream are the same on CPU and CUDA."""
    stream = stream_of(3, "x")
    assert torch.equal(integers(stream, 5, 100_003, "cuda").cpu(), integers(stream, 5, 100_003))
