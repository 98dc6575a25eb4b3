"""TIES' sign election: per element, the models of the majority's sign are summed, the others are left out.

    V_i = w_i D_i        S = sum V_i        m_i = [V_i != 0 and sign(V_i) = sign(S)], sign(0) = +
    M = sum m_i V_i      q = sum m_i w_i, 1 where that is 0      R = M / q * lambda

Written down like this it takes masks, which are the slowest thing a tensor library does. The kernel computes the same
bits from float passes alone: flip every V_i by the sign of S, so that the majority is positive everywhere; cut off
what is negative; sum; flip the sum back. A sum of negated terms is the negated sum, rounding included, so nothing is
lost. The mask of an element that is now zero or positive is its sign, 0 or 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mergeflow.methods.kernels.elementwise import rounded, weighed
from mergeflow.methods.kernels.protocols import Record, Scratch
from mergeflow.methods.values import flag, number, numbers


def consensus(
    blocks: Sequence[Tensor],
    records: Sequence[Record],
    parameters: Mapping[str, object],
    out: Tensor,
    scratch: Scratch,
    start: int,
) -> None:
    """R = lambda * M / q over the blocks (n,) of two or more task vectors; q only with `normalize`.

    Elect and disjoint merge of TIES (Yadav et al., 2306.01708), with mergekit's weights. Scratch: one buffer per
    model, and two.
    """
    count = len(blocks)
    weights = [rounded(weight, out) for weight in numbers(parameters, "weights")]
    votes = [weighed(block, weight, scratch(i)) for i, (block, weight) in enumerate(zip(blocks, weights, strict=True))]

    signs = _sign_bits(votes, scratch(count))
    agreeing = [_agreeing(vote, signs, scratch(i)) for i, vote in enumerate(votes)]
    _sum(agreeing, out)
    if flag(parameters, "normalize"):
        _divide_by_weight(out, agreeing, weights, scratch(count + 1))
    _flip(out, signs, out)

    factor = rounded(number(parameters, "lambda"), out)
    if factor != 1.0:
        torch.mul(out, factor, out=out)


def _sum(values: Sequence[Tensor], out: Tensor) -> Tensor:
    """out = the sum of the values (n,), from first to last."""
    first, *others = values
    if not others:
        return out.copy_(first)
    torch.add(first, others[0], out=out)
    for value in others[1:]:
        torch.add(out, value, out=out)
    return out


def _sign_bits(votes: Sequence[Tensor], buffer: Tensor) -> Tensor:
    """The sign bit of each element of the votes' sum, alone in an integer of the same width (n,).

    A sum of opposite values is +0, so zero counts as positive. The sum is -0 only where every vote is, and there is
    nothing to elect there.
    """
    bits = _bits(_sum(votes, buffer))
    return torch.bitwise_and(bits, torch.iinfo(bits.dtype).min, out=bits)


def _agreeing(vote: Tensor, signs: Tensor, buffer: Tensor) -> Tensor:
    """The vote's magnitude where it has the elected sign, 0 elsewhere (n,); a NaN stays."""
    return _flip(vote, signs, buffer).relu_()


def _flip(values: Tensor, signs: Tensor, out: Tensor) -> Tensor:
    """out = values with their sign changed where the sign bit is set (n,)."""
    torch.bitwise_xor(_bits(values), signs, out=_bits(out))
    return out


def _bits(values: Tensor) -> Tensor:
    """The same memory, as integers of the same width."""
    return values.view(torch.int64 if values.dtype == torch.float64 else torch.int32)


def _divide_by_weight(total: Tensor, agreeing: Sequence[Tensor], weights: Sequence[float], buffer: Tensor) -> None:
    """total /= the sum of the weights of those that agree (n,); `agreeing` is overwritten with their masks."""
    masks = [torch.sign(values, out=values) for values in agreeing]
    torch.mul(masks[0], weights[0], out=buffer)
    for mask, weight in zip(masks[1:], weights[1:], strict=True):
        # The one multiply-add of this package: a product with 0 or 1 is exact, so fusing it cannot change a bit.
        torch.add(buffer, mask, alpha=weight, out=buffer)

    if min(weights) > 0.0:
        # Nobody agrees only where the total is 0 too, and then any positive divisor will do.
        buffer.clamp_(min=min(weights))
    else:
        torch.add(buffer, torch.eq(buffer, 0.0, out=masks[0]), out=buffer)
    torch.div(total, buffer, out=total)
