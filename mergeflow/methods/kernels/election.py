"""Electing one value per element among several deltas: the largest of all, or the largest of the majority's sign.

The largest magnitude of all (MagMax, 2407.06322) is found on the numbers' bit patterns: without their sign bit they
have the order of the magnitudes, NaN above infinity, and the sign of a difference, spread over all bits, is the mask
that takes one number or the other. So the first listed wins a tie, a NaN is never lost, and nothing is rounded.

The largest of the majority's sign (EMR, 2405.17461) is a maximum over V_i * sign(S), S the sum of all, with a floor of
zero. Which zero a maximum of zeros of two signs is, is the machine's choice: adding zero makes it the positive one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mergeflow.methods.kernels.elementwise import add_weighed, multiply, weighed
from mergeflow.methods.kernels.protocols import Record, Scratch
from mergeflow.methods.values import numbers


def largest_magnitude(
    blocks: Sequence[Tensor],
    records: Sequence[Record],
    parameters: Mapping[str, object],
    out: Tensor,
    scratch: Scratch,
    start: int,
) -> None:
    """R = the V_i = w_i * D_i of the largest magnitude, the first of those that tie. Scratch: three buffers."""
    weights = numbers(parameters, "weights")
    multiply(blocks[0], weights[0], out)
    for block, weight in zip(blocks[1:], weights[1:], strict=True):
        _take_larger(out, weighed(block, weight, scratch(0)), scratch(1), scratch(2))


def _take_larger(values: Tensor, others: Tensor, difference: Tensor, buffer: Tensor) -> None:
    """values = others where they have the larger magnitude, all (n,); `others` is not modified."""
    mine, its, larger, flips = (_bits(tensor) for tensor in (values, others, difference, buffer))
    magnitude = torch.iinfo(mine.dtype).max

    torch.bitwise_and(mine, magnitude, out=larger)
    torch.sub(larger, torch.bitwise_and(its, magnitude, out=flips), out=larger)
    torch.bitwise_right_shift(larger, torch.iinfo(mine.dtype).bits - 1, out=larger)  # all ones where negative, else 0
    torch.bitwise_xor(mine, its, out=flips)
    torch.bitwise_xor(mine, torch.bitwise_and(flips, larger, out=flips), out=mine)


def unify(
    blocks: Sequence[Tensor],
    records: Sequence[Record],
    parameters: Mapping[str, object],
    out: Tensor,
    scratch: Scratch,
    start: int,
) -> None:
    """R = sign(S) * max(|V_i| of that sign), V_i = w_i * D_i, S = sum(V_i); 0 where S = 0. Scratch: two buffers."""
    weights = numbers(parameters, "weights")
    add_weighed(blocks, weights, out, scratch)
    signs = torch.sign(out, out=scratch(1))

    out.zero_()
    for block, weight in zip(blocks, weights, strict=True):
        towards = torch.mul(weighed(block, weight, scratch(0)), signs, out=scratch(0))
        torch.maximum(out, towards, out=out)
    out.add_(0.0)
    torch.mul(out, signs, out=out)


def agreeing(
    blocks: Sequence[Tensor],
    records: Sequence[Record],
    parameters: Mapping[str, object],
    out: Tensor,
    scratch: Scratch,
    start: int,
) -> None:
    """R = U where D has its sign, else 0, for blocks U and D (n,). Scratch: one buffer."""
    unified, delta = blocks
    signs = torch.sign(delta, out=scratch(0))
    torch.mul(unified, signs, out=out).relu_()
    torch.mul(out, signs, out=out)
    out.add_(0.0)


def _bits(values: Tensor) -> Tensor:
    """The same memory, as integers of the same width."""
    return values.view(torch.int64 if values.dtype == torch.float64 else torch.int32)
