"""Matrix products that are the same to the last bit on every machine.

A library multiplies matrices in an order of its own, and rounding makes the order show. So matrices are cut into
slices of whole numbers (Ozaki et al., 2012), so short that every sum of their products is below 2^53 and exact in
float64: then any order, any number of threads, any device gives the same.

    A = (A_0 + A_1 / 2^a) * scale + rest       B = (B_0 + B_1 / 2^b) * scale + rest       |A_0| <= 2^a, |B_0| <= 2^b
    A B = (A_0 B_0 + A_0 B_1 / 2^b + A_1 B_0 / 2^a) * scales

Scales are powers of two, one for a matrix. What is left out is some 2^-(a + b) of the largest entry of A times the
largest of B times the length n of a sum, and a + b = 53 - log2(n): about 10^-9 of the largest for n = 4096.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_EXACT_BITS = 53


@dataclass(frozen=True, slots=True)
class Sliced:
    """A matrix in two slices of whole numbers (float64), of `bits` each: (high + low / 2^bits) * scale."""

    high: Tensor
    low: Tensor
    scale: float
    bits: int

    @property
    def transposed(self) -> Sliced:
        """Its transpose, over the same memory."""
        return Sliced(self.high.T, self.low.T, self.scale, self.bits)


def sliced(matrix: Tensor) -> Sliced:
    """The slices of a finite matrix (m, n), for products from the left with it and with its transpose."""
    return _sliced(matrix, (_EXACT_BITS - _bits_of(max(matrix.shape))) // 2)


def product(left: Tensor | Sliced, right: Tensor) -> Tensor:
    """A B of (m, n) and (n, p), as float64; both finite."""
    a = left if isinstance(left, Sliced) else sliced(left)
    return _product(a, _sliced(right, _EXACT_BITS - _bits_of(len(right)) - a.bits))


def gram(matrix: Tensor) -> Tensor:
    """A'A of a finite matrix (m, n), as float64 (n, n)."""
    a = sliced(matrix)
    return _product(a.transposed, a)


def _product(a: Sliced, b: Sliced) -> Tensor:
    result = a.low @ b.high
    result *= 2.0**-a.bits
    result += (a.high @ b.low).mul_(2.0**-b.bits)
    result += a.high @ b.high
    return result.mul_(a.scale * b.scale)


def _sliced(matrix: Tensor, bits: int) -> Sliced:
    largest = float(matrix.abs().amax()) if matrix.numel() else 0.0
    _, exponent = math.frexp(largest)
    scale = math.ldexp(1.0, exponent - bits)

    rest = matrix.to(torch.float64) / scale
    high = rest.round()
    low = rest.sub_(high).mul_(2.0**bits).round_()
    return Sliced(high, low, scale, bits)


def _bits_of(length: int) -> int:
    """Bits that a sum of so many numbers has more than they."""
    return math.ceil(math.log2(max(length, 2)))
