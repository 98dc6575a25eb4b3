"""Random numbers from a counter: u = f(seed, stream, index), the same on any device, in any block, in any order.

Nothing is drawn from a generator with a state. The number of an element is computed from where it stands alone, so a
mask depends on the seed, on the tensor it is for (its *stream*: the key of that tensor) and on nothing else.

The generator is SplitMix64 as Java's SplittableRandom uses it (Steele, Lea, Flood: Fast splittable pseudorandom number
generators, OOPSLA 2014; it passes BigCrush): a stream has a 64-bit start s and an odd 64-bit step g of its own, and its
j-th word, j = 0, 1, ..., all arithmetic modulo 2^64 and >> shifting in zeros, is

    z = s + (j + 1) g
    z = (z xor (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z xor (z >> 27)) * 0x94D049BB133111EB
    z =  z xor (z >> 31)

Stream: h = blake2b(text, 16 bytes), text = "mergeflow random 1\\n" + seed in decimal + "\\n" + stream, in UTF-8;
s = bytes 0 to 7 of h, g = bytes 8 to 15 with the lowest bit set, both little-endian; where g xor (g >> 1) has fewer
than 24 bits set, g is replaced by g xor 0xAAAAAAAAAAAAAAAA (a step of long runs of equal bits mixes badly: same paper).

Element i, the flat index in the whole tensor, takes half of word j = i >> 1: the low 32 bits where i is even, the high
ones where it is odd, read as a signed integer v (two's complement). Then

    u = (floor(v / 256) + 2^23) / 2^24        in {0, 1, ..., 2^24 - 1} / 2^24, exact in float32
    u < p   if and only if   v <= 256 T - 2^31 - 1,   T = ceil(2^24 p)        for 0 < p <= 1

and an element is kept where u < p: so masks of one tensor at two densities are nested.

The words are made of integer operations that torch has on every device. It has no shift that moves in zeros: shifting
and masking are two operations. 64-bit words pay because one makes two numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mergeflow.methods.kernels.streams import NUMBERS, Stream

MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
SHIFTS = (30, 27, 31)
_WRAP = 2**64


def random_integers(stream: Stream, start: int, count: int, buffers: tuple[Tensor, Tensor]) -> Tensor:
    """v of the elements [start, start + count), int32 (count,), in the memory of the first buffer.

    Args:
        buffers: two contiguous float buffers of `count` elements each, overwritten. (Where an odd start or count needs
            a word more than they hold, new memory is taken.)
    """
    first = start // 2
    words = (start + count + 1) // 2 - first
    z, spare = (_as_words(buffer, words) for buffer in buffers)
    torch.arange(first + 1, first + words + 1, out=z)
    z.mul_(_signed(stream.step)).add_(_signed(stream.start))
    for shift, multiplier in zip(SHIFTS, MULTIPLIERS, strict=False):
        _fold(z, shift, spare).mul_(_signed(multiplier))
    _fold(z, SHIFTS[-1], spare)
    skipped = start % 2
    return z.view(torch.int32)[skipped : skipped + count]


def uniform(stream: Stream, start: int, count: int) -> Tensor:
    """u of the elements [start, start + count), float32 (count,) in new memory: what the integers stand for."""
    buffers = (torch.empty(count), torch.empty(count))
    integers = random_integers(stream, start, count, buffers)
    return (torch.bitwise_right_shift(integers, 8) + NUMBERS // 2).float() / NUMBERS


def _fold(z: Tensor, shift: int, spare: Tensor) -> Tensor:
    """z = z xor (z >> shift), zeros shifted in; all (n,) int64."""
    torch.bitwise_right_shift(z, shift, out=spare)
    spare.bitwise_and_((1 << (64 - shift)) - 1)
    return z.bitwise_xor_(spare)


def _as_words(buffer: Tensor, words: int) -> Tensor:
    """Memory for int64 (words,): that of the buffer where it is large enough."""
    flat = buffer.view(-1)
    held = flat.numel() * flat.element_size() // 8
    if held < words:
        return torch.empty(words, dtype=torch.int64, device=buffer.device)
    return flat[: held * 8 // flat.element_size()].view(torch.int64)[:words]


def _signed(value: int) -> int:
    """The two's complement of 64 bits as Python's signed integer."""
    return value - _WRAP if value >= _WRAP // 2 else value
