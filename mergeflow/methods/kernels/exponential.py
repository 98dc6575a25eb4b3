"""The exponential and the logarithm, the same to the last bit on every machine.

A library's own differ in their last bits between processors, and between a CPU and a GPU. These are made of additions,
multiplications and divisions in float64, each rounded by itself as IEEE 754 says, so they leave no choice. Their error
is a few units in the last place.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# ln 2 in two parts: the product of the first with a whole number of up to 11 bits is exact (as in fdlibm).
_LN2_HIGH = 6.93147180369123816490e-01
_LN2_LOW = 1.90821492927058770002e-10
_LOG2_E = math.log2(math.e)

# Beyond these, results leave the range of float64; a softmax has long reached zero there.
_SMALLEST = -700.0
_LARGEST = 700.0

# The first term left out is below 2^-56 of the result: r^14 / 14! for |r| <= ln(2) / 2, z^11 / 23 for z <= 0.0295.
_EXP_TERMS = tuple(1.0 / math.factorial(n) for n in range(13, -1, -1))
_LOG_TERMS = tuple(2.0 / n for n in range(21, 0, -2))

_MANTISSA_BITS = 52
_EXPONENT_BIAS = 1023
_SQRT_HALF_BITS = 0x3FE6A09E667F3BCD


def exp_(x: Tensor, buffers: tuple[Tensor, Tensor]) -> Tensor:
    """x = e^x in place; float64, any shape; taken as +-700 beyond that. A NaN stays.

    Args:
        buffers: two tensors like `x`, overwritten.
    """
    power, sum_ = buffers
    x.clamp_(_SMALLEST, _LARGEST)
    torch.mul(x, _LOG2_E, out=power).round_()
    x -= torch.mul(power, _LN2_HIGH, out=sum_)
    x -= torch.mul(power, _LN2_LOW, out=sum_)

    _polynomial(_EXP_TERMS, x, sum_)
    # A NaN has no power of two; its sum is NaN already.
    bits = power.nan_to_num_().to(torch.int64)
    scale = bits.add_(_EXPONENT_BIAS).bitwise_left_shift_(_MANTISSA_BITS).view(torch.float64)
    return torch.mul(sum_, scale, out=x)


def log_(x: Tensor, buffers: tuple[Tensor, Tensor]) -> Tensor:
    """x = ln(x) in place; float64, any shape, positive normal numbers. A NaN stays.

    Args:
        buffers: two tensors like `x`, overwritten.
    """
    square, sum_ = buffers
    is_nan = torch.sub(x, x, out=sum_).clone()  # 0, or NaN for NaN and infinity

    # x = 2^power * m, m in [sqrt(1/2), sqrt(2))
    bits = x.view(torch.int64)
    power = (bits - _SQRT_HALF_BITS).bitwise_right_shift_(_MANTISSA_BITS)
    bits -= power << _MANTISSA_BITS

    # ln(m) = 2 artanh(s), s = (m - 1) / (m + 1)
    torch.add(x, 1.0, out=square)
    x.sub_(1.0).div_(square)
    torch.mul(x, x, out=square)
    _polynomial(_LOG_TERMS, square, sum_)
    x *= sum_

    whole = power.to(torch.float64)
    x += torch.mul(whole, _LN2_LOW, out=sum_)
    x += torch.mul(whole, _LN2_HIGH, out=sum_)
    return x.add_(is_nan)


def _polynomial(terms: tuple[float, ...], x: Tensor, out: Tensor) -> Tensor:
    """out = the polynomial with these coefficients, highest power first, at x."""
    highest, *others = terms
    out.fill_(highest)
    for term in others:
        out.mul_(x).add_(term)
    return out
