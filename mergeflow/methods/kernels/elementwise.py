"""Sums, differences and products of tensors, element by element."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mergeflow.methods.kernels.protocols import Record, Scratch
from mergeflow.methods.values import number, numbers


def rounded(coefficient: float, like: Tensor) -> float:
    """The coefficient, rounded once to the dtype of `like`, so that no library's choice of rounding can show."""
    return float(torch.tensor(coefficient, dtype=like.dtype))


def multiply(block: Tensor, coefficient: float, out: Tensor) -> None:
    """out = coefficient * block, all (n,). A product with one is a copy, which keeps a NaN's bits too."""
    if coefficient == 1.0:
        out.copy_(block)
    else:
        torch.mul(block, rounded(coefficient, block), out=out)


def weighed(block: Tensor, coefficient: float, buffer: Tensor) -> Tensor:
    """coefficient * block (n,): the block itself when the coefficient is one, else `buffer`, filled."""
    return block if coefficient == 1.0 else torch.mul(block, rounded(coefficient, block), out=buffer)


def cast(
    blocks: Sequence[Tensor],
    records: Sequence[Record],
    parameters: Mapping[str, object],
    out: Tensor,
    scratch: Scratch,
    start: int,
) -> None:
    """R = X, rounded to nearest, ties to even, to the dtype of `out`."""
    (block,) = blocks
    out.copy_(block)


def task_vector(
    blocks: Sequence[Tensor],
    records: Sequence[Record],
    parameters: Mapping[str, object],
    out: Tensor,
    scratch: Scratch,
    start: int,
) -> None:
    """D = X - B: what fine-tuning changed (Ilharco et al., 2212.04089)."""
    tuned, base = blocks
    torch.sub(tuned, base, out=out)


def add(
    blocks: Sequence[Tensor],
    records: Sequence[Record],
    parameters: Mapping[str, object],
    out: Tensor,
    scratch: Scratch,
    start: int,
) -> None:
    """R = B + D."""
    base, delta = blocks
    torch.add(base, delta, out=out)


def scale(
    blocks: Sequence[Tensor],
    records: Sequence[Record],
    parameters: Mapping[str, object],
    out: Tensor,
    scratch: Scratch,
    start: int,
) -> None:
    """R = factor * X; `factor` is rounded once to the compute dtype."""
    (block,) = blocks
    multiply(block, number(parameters, "factor"), out)


def weighted_sum(
    blocks: Sequence[Tensor],
    records: Sequence[Record],
    parameters: Mapping[str, object],
    out: Tensor,
    scratch: Scratch,
    start: int,
) -> None:
    """R = ((c_1 X_1 + c_2 X_2) + c_3 X_3) + ...; each c_i is rounded once, each product and sum by itself."""
    add_weighed(blocks, numbers(parameters, "coefficients"), out, scratch)


def add_weighed(blocks: Sequence[Tensor], coefficients: Sequence[float], out: Tensor, scratch: Scratch) -> None:
    """out = sum of coefficients[i] * blocks[i] (n,), added from first to last."""
    first, *others = zip(blocks, coefficients, strict=True)
    multiply(*first, out)
    for block, coefficient in others:
        torch.add(out, weighed(block, coefficient, scratch(0)), out=out)
