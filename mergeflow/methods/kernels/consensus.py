"""TIES' sign election: per element, the models of the majority's sign are summed, the others are left out.

    V_i = w_i D_i        S = sum V_i        m_i = [V_i != 0 and sign(V_i) = sign(S)], sign(0) = +
    M = sum m_i V_i      q = sum m_i w_i, 1 where that is 0      R = M / q * lambda

Written down like this it takes masks, which are the slowest thing a tensor library does. The kernel computes the same
bits from float passes alone: flip every V_i by the sign of S, so that the majority is positive everywhere; cut off
what is negative; sum; flip the sum back. A sum of negated terms is the negated sum, rounding included, so nothing is
lost. The mask of an element that is now zero or positive is its sign, 0 or 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mergeflow.methods.kernels.elementwise import rounded, weighed
from mergeflow.methods.kernels.energies import SMALLEST_WEIGHT, energy_shares
from mergeflow.methods.kernels.protocols import Record, Scratch
from mergeflow.methods.values import flag, number, numbers, text, whole


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
    weights = [rounded(weight, out) for weight in numbers(parameters, "weights")]
    votes = _votes(blocks, weights, scratch)
    signs = _sign_bits(_sum(votes, scratch(len(blocks))))
    _merge_agreeing(votes, signs, weights, parameters, out, scratch)


def consensus_by(
    blocks: Sequence[Tensor],
    records: Sequence[Record],
    parameters: Mapping[str, object],
    out: Tensor,
    scratch: Scratch,
    start: int,
) -> None:
    """The same R with another electorate: S is the sum of the ballots b_i of the models.

    `election` ``unweighted``: b_i = sign(w_i) D_i, the total mass of the paper; ``count``: b_i = sign(V_i), one vote
    each. Scratch: one buffer per model, and two.
    """
    weights = [rounded(weight, out) for weight in numbers(parameters, "weights")]
    votes = _votes(blocks, weights, scratch)
    total, ballot = scratch(len(blocks)).zero_(), scratch(len(blocks) + 1)
    by_count = text(parameters, "election") == "count"
    for block, vote, weight in zip(blocks, votes, weights, strict=True):
        if by_count:
            total.add_(torch.sign(vote, out=ballot))
        else:
            torch.add(total, block, alpha=math.copysign(1.0, weight), out=total)
    _merge_agreeing(votes, _sign_bits(total), weights, parameters, out, scratch)


def sce(
    blocks: Sequence[Tensor],
    records: Sequence[Record],
    parameters: Mapping[str, object],
    out: Tensor,
    scratch: Scratch,
    start: int,
) -> None:
    """R = sum(m_i e_i D_i) / max(sum(m_i e_i), 1e-6) over the blocks (n,) of two or more selected task vectors.

        S = sum D_i        m_i = [D_i != 0 and sign(D_i) = sign(S)]        e_i = |D_i|^2 / sum |D_j|^2

    Calculate and erase of SCE (Wan et al., FuseChat, 2408.07990), in mergekit's reading. Records: each D_i's gram.
    Parameter: size, the number of elements of a whole tensor. Scratch: one buffer per model, and two.
    """
    count = len(blocks)
    weights = [rounded(weight, out) for weight in energy_shares(records, whole(parameters, "size"))]
    signs = _sign_bits(_sum(blocks, scratch(count)))
    agreeing = [_agreeing(block, signs, scratch(i)) for i, block in enumerate(blocks)]

    product = scratch(count + 1)
    out.zero_()
    for values, weight in zip(agreeing, weights, strict=True):
        out.add_(torch.mul(values, weight, out=product))
    torch.div(out, _weight_that_agrees(agreeing, weights, product).clamp_(min=rounded(SMALLEST_WEIGHT, out)), out=out)
    _flip(out, signs, out)


def _votes(blocks: Sequence[Tensor], weights: Sequence[float], scratch: Scratch) -> list[Tensor]:
    """V_i = w_i D_i, each (n,), in the first buffers."""
    return [weighed(block, weight, scratch(i)) for i, (block, weight) in enumerate(zip(blocks, weights, strict=True))]


def _merge_agreeing(
    votes: Sequence[Tensor],
    signs: Tensor,
    weights: Sequence[float],
    parameters: Mapping[str, object],
    out: Tensor,
    scratch: Scratch,
) -> None:
    """out = lambda * M / q, given the elected sign bits in buffer number `len(votes)`; uses the others."""
    agreeing = [_agreeing(vote, signs, scratch(i)) for i, vote in enumerate(votes)]
    _sum(agreeing, out)
    if flag(parameters, "normalize"):
        _divide_by_weight(out, agreeing, weights, scratch(len(votes) + 1))
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


def _sign_bits(total: Tensor) -> Tensor:
    """The sign bit of each element of a sum (n,), alone in an integer of the same width, in the sum's memory.

    A sum of opposite values is +0, so zero counts as positive. The sum is -0 only where every vote is, and there is
    nothing to elect there.
    """
    bits = _bits(total)
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
    """total /= the sum of the weights of those that agree (n,); `agreeing` is overwritten."""
    _weight_that_agrees(agreeing, weights, buffer)
    if min(weights) > 0.0:
        # Nobody agrees only where the total is 0 too, and then any positive divisor will do.
        buffer.clamp_(min=min(weights))
    else:
        torch.add(buffer, torch.eq(buffer, 0.0, out=agreeing[0]), out=buffer)
    torch.div(total, buffer, out=total)


def _weight_that_agrees(agreeing: Sequence[Tensor], weights: Sequence[float], buffer: Tensor) -> Tensor:
    """buffer = the sum of the weights of those that agree (n,); `agreeing` is overwritten with their masks."""
    masks = [torch.sign(values, out=values) for values in agreeing]
    torch.mul(masks[0], weights[0], out=buffer)
    for mask, weight in zip(masks[1:], weights[1:], strict=True):
        # The one multiply-add of this package: a product with 0 or 1 is exact, so fusing it cannot change a bit.
        torch.add(buffer, mask, alpha=weight, out=buffer)
    return buffer
