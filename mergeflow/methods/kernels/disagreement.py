"""Where models disagree most: the variance of their task vectors, and its largest entries (the "select" of SCE)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mergeflow.methods.kernels.protocols import Record, Scratch
from mergeflow.methods.kernels.trimming import trim


def variance(
    blocks: Sequence[Tensor],
    records: Sequence[Record],
    parameters: Mapping[str, object],
    out: Tensor,
    scratch: Scratch,
    start: int,
) -> None:
    """R = sum((D_i - mean)^2) / n, mean = sum(D_i) / n, over the blocks (n,) of two or more task vectors.

    Computed in float64 and rounded once: so it is 0 where all are equal, and that the models were listed in another
    order does not show. Scratch: three buffers.
    """
    wide = out.dtype == torch.float64
    step = max(1, out.numel() if wide else out.numel() // 2)
    for begin in range(0, out.numel(), step):
        some = slice(begin, begin + step)
        some_out = out[some]
        total, mean, value = (_as_float64(scratch(i), some_out.numel()) for i in range(3))
        mean.zero_()
        for block in blocks:
            mean.add_(value.copy_(block[some]))
        mean.div_(len(blocks))

        total.zero_()
        for block in blocks:
            value.copy_(block[some]).sub_(mean)
            total.add_(value.mul_(value))
        some_out.copy_(total.div_(len(blocks)))


def select(
    blocks: Sequence[Tensor],
    records: Sequence[Record],
    parameters: Mapping[str, object],
    out: Tensor,
    scratch: Scratch,
    start: int,
) -> None:
    """R = D where the variance V is among the largest, as `LargestShare` found them; 0 elsewhere."""
    delta, variances = blocks
    trim([variances], records, parameters, out, scratch, start)
    out.sign_().mul_(delta)


def _as_float64(buffer: Tensor, count: int) -> Tensor:
    """The memory of a buffer as float64 (count,); new memory where it is too small, for a single number."""
    whole = buffer[: buffer.numel() // 2 * 2].view(torch.float64)
    return whole[:count] if len(whole) >= count else torch.empty(count, dtype=torch.float64, device=buffer.device)
