"""TALL masks: which elements of a merged delta still carry what one task needs, and how many tasks need each.

A task is served by an element of the merged delta S when that brings it nearer than no change at all would: when its
own delta is at least `tall_lambda` times as large as what is missing to it (Wang et al., 2405.07813).

    V_i = w_i D_i        m_i = [|V_i| >= tall_lambda_i * |S - V_i|]        R = S where sum(m_i) >= least, else 0

Weights scale a task's delta before anything else, so that a common factor of all weights leaves the masks of a sum as
they are. A mask is a tensor of zeros and ones like any other, and a node of its own: a changed tall_lambda touches one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mergeflow.methods.kernels.elementwise import multiply, rounded
from mergeflow.methods.kernels.protocols import Record, Scratch
from mergeflow.methods.values import number, whole


def tall_mask(
    blocks: Sequence[Tensor],
    records: Sequence[Record],
    parameters: Mapping[str, object],
    out: Tensor,
    scratch: Scratch,
    start: int,
) -> None:
    """m = [|w * D| >= tall_lambda * |S - w * D|] for blocks S and D (n,). Scratch: one buffer."""
    total, delta = blocks
    own = scratch(0)
    multiply(delta, number(parameters, "weight"), own)
    missing = torch.sub(total, own, out=out).abs_()
    missing.mul_(rounded(number(parameters, "tall_lambda"), out))
    torch.ge(own.abs_(), missing, out=out)


def tall_vote(
    blocks: Sequence[Tensor],
    records: Sequence[Record],
    parameters: Mapping[str, object],
    out: Tensor,
    scratch: Scratch,
    start: int,
) -> None:
    """R = S where at least `least` of the masks are 1, else 0; blocks S, m_1, m_2, ... (n,). A NaN of S stays."""
    total, first, *others = blocks
    votes = out.copy_(first)
    for mask in others:
        torch.add(votes, mask, out=votes)
    torch.ge(votes, float(whole(parameters, "least")), out=out)
    torch.mul(out, total, out=out)
