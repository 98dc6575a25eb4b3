"""NearSwap: take the other model's weight where it is near, and move towards it by no more than t where it is not.

It is published as an interpolation whose weight depends on the distance,

    w = clamp(t / |B - X|, 0, 1)        R = w * X + (1 - w) * B

which is X where |X - B| <= t, and B plus or minus t elsewhere: X held to the interval [B - t, B + t]. Said so, it takes
four passes, and rounds once at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mergeflow.methods.kernels.elementwise import rounded
from mergeflow.methods.kernels.protocols import Record, Scratch
from mergeflow.methods.values import number


def nearswap(
    blocks: Sequence[Tensor],
    records: Sequence[Record],
    parameters: Mapping[str, object],
    out: Tensor,
    scratch: Scratch,
    start: int,
) -> None:
    """R = min(max(X, B - t), B + t) for blocks B and X (n,), t > 0; a NaN stays. Scratch: one buffer."""
    base, other = blocks
    t = rounded(number(parameters, "t"), out)
    torch.maximum(other, torch.sub(base, t, out=scratch(0)), out=out)
    torch.minimum(out, torch.add(base, t, out=scratch(0)), out=out)
    # Which zero the extreme of zeros of two signs is, is the machine's choice: this makes it the positive one.
    out.add_(0.0)
