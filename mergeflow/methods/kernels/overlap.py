"""Where changes of several models overlap: which elements one model alone changed, and which ones several did.

    a_i = [|D_i| > epsilon]        c = sum(a_i)        unique: c = 1        shared: c > 1

RAM ("Reinforced Agent Merging", 2601.13572) keeps what one model alone changed as it is, since averaging it with the
zeros of the others would only dilute it, and averages what several changed. RAM+ strengthens the former by how much a
model shares with the others, which takes the number of elements of either kind: counts, exact on any device.

A change that is cut off is a zero, so a mask is "not zero", and the sum over all models is the sum over those that
changed the element.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mergeflow.methods.kernels.elementwise import multiply, rounded
from mergeflow.methods.kernels.protocols import Record, Scratch, pieces
from mergeflow.methods.kernels.trimming import keep_above
from mergeflow.methods.values import number

# A sum of so many zeros and ones is exact in float32, whatever the order (2^24 is its last consecutive integer).
COUNTED_AT_ONCE = 2**22


def ram(
    blocks: Sequence[Tensor],
    records: Sequence[Record],
    parameters: Mapping[str, object],
    out: Tensor,
    scratch: Scratch,
    start: int,
) -> None:
    """R = sum(a_i * D_i) / max(c, 1): the mean over the models that changed the element. Scratch: two buffers."""
    epsilon = rounded(number(parameters, "epsilon"), out)
    out.zero_()
    count = scratch(0).zero_()
    for block in blocks:
        change = _change(block, epsilon, scratch(1))
        torch.add(out, change, out=out)
        torch.add(count, _mask(change), out=count)
    torch.div(out, count.clamp_(min=1.0), out=out)


def ram_plus(
    blocks: Sequence[Tensor],
    records: Sequence[Record],
    parameters: Mapping[str, object],
    out: Tensor,
    scratch: Scratch,
    start: int,
) -> None:
    """R = sum(a_i * D_i) / c where shared, lambda_i * D_i where model i alone changed it, 0 elsewhere.

    The factors are those of `strengths`. Scratch: four buffers.
    """
    (record,) = records
    epsilon = rounded(number(parameters, "epsilon"), out)
    factors = strengths(record, *(number(parameters, name) for name in ("r", "alpha", "epsilon")))

    out.zero_()
    count, strengthened = scratch(0).zero_(), scratch(1).zero_()
    for block, factor in zip(blocks, factors, strict=True):
        change = _change(block, epsilon, scratch(2))
        multiply(change, factor, scratch(3))
        torch.add(strengthened, scratch(3), out=strengthened)
        torch.add(out, change, out=out)
        torch.add(count, _mask(change), out=count)

    # One of the two is multiplied by one and the other by zero: the sum is exact.
    torch.mul(strengthened, torch.eq(count, 1.0, out=scratch(2)), out=strengthened)
    shared = torch.gt(count, 1.0, out=scratch(2))
    torch.div(out, count.clamp_(min=1.0), out=out)
    torch.mul(out, shared, out=out)
    torch.add(out, strengthened, out=out)


def strengths(record: Record, r: float, alpha: float, epsilon: float) -> list[float]:
    """lambda_i = 1 + r * min(shared_i / max(unique_i, epsilon), alpha), in float64, for each model.

    mergekit's formula, in which epsilon is also the least number to divide by.
    """
    unique, shared = record["unique"], record["shared"]
    assert isinstance(unique, Sequence)
    assert isinstance(shared, Sequence)
    return [
        1.0 + r * min(_ratio(with_others, alone, epsilon), alpha)
        for alone, with_others in zip(unique, shared, strict=True)
    ]


def _ratio(shared: float, unique: float, epsilon: float) -> float:
    """shared / max(unique, epsilon); infinite when that is zero: the factor is then of no element, and only bounded."""
    divisor = max(unique, epsilon)
    return shared / divisor if divisor > 0.0 else math.inf


class OverlapCounts:
    """How many elements each model alone changed by more than `epsilon`, and how many it changed with others.

    Record {"unique": [k], "shared": [k]} for k inputs: whole numbers, exact.
    """

    needs_sample = False

    def __init__(self, size: int, parameters: Mapping[str, object]) -> None:
        self.wanted = range(size)
        self._epsilon = number(parameters, "epsilon")
        self._counts: Tensor | None = None  # (2, k): changed at all, and alone

    def sample(self, blocks: Sequence[Tensor]) -> None:
        """Not needed."""

    def update(self, start: int, blocks: Sequence[Tensor], scratch: Scratch) -> None:
        """Adds one block of each input, (n,). Scratch: one buffer for each input, and one."""
        epsilon = rounded(self._epsilon, blocks[0])
        buffers = [scratch(i) for i in range(len(blocks) + 1)]
        if self._counts is None:
            self._counts = torch.zeros((2, len(blocks)), dtype=torch.float64, device=blocks[0].device)
        for begin, end in pieces(start, blocks[0].numel(), COUNTED_AT_ONCE):
            changes = [
                _change(block[begin:end], epsilon, buffer[begin:end])
                for block, buffer in zip(blocks, buffers[1:], strict=True)
            ]
            self._counts += _counts([_mask(change) for change in changes], buffers[0][begin:end])

    def finish(self) -> Record:
        """The record, after one pass."""
        if self._counts is None:
            return {"unique": [], "shared": []}
        changed, unique = ([int(count) for count in row] for row in self._counts.tolist())
        return {
            "unique": [*unique],
            "shared": [every - alone for every, alone in zip(changed, unique, strict=True)],
        }


def _counts(masks: Sequence[Tensor], buffer: Tensor) -> Tensor:
    """The sums (2, k) of k masks (n,), and of the masks where no other is set; overwrites the masks."""
    changed = [mask.sum() for mask in masks]
    count = buffer.zero_()
    for mask in masks:
        torch.add(count, mask, out=count)
    alone = torch.eq(count, 1.0, out=count)
    unique = [torch.mul(mask, alone, out=mask).sum() for mask in masks]
    return torch.stack([*changed, *unique]).double().view(2, len(masks))


def _change(delta: Tensor, epsilon: float, buffer: Tensor) -> Tensor:
    """The delta where it is larger than epsilon, 0 elsewhere (n,); a NaN stays."""
    keep_above(delta, epsilon, buffer)
    return buffer


def _mask(change: Tensor) -> Tensor:
    """1 where there is a change, 0 elsewhere (n,); overwrites the change."""
    return torch.ne(change, 0.0, out=change)
