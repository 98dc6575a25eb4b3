"""Dropping entries of a task vector at random, all with the same probability: the first half of DARE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mergeflow.methods.kernels.counter_random import random_integers
from mergeflow.methods.kernels.protocols import Record, Scratch
from mergeflow.methods.kernels.streams import bound, stream_of
from mergeflow.methods.values import number, text, whole


def drop(
    blocks: Sequence[Tensor],
    records: Sequence[Record],
    parameters: Mapping[str, object],
    out: Tensor,
    scratch: Scratch,
    start: int,
) -> None:
    """R = m * D over a block (n,), m = 1 where u < density, else 0: Drop And REscale (Yu et al., 2311.03099).

    u is the element's number in the stream of D under the seed (`counter_random`). A NaN or infinity that is dropped
    gives NaN, so that damage is not hidden. Parameters: density in (0, 1), seed, stream. Scratch: two buffers.
    """
    (delta,) = blocks
    stream = stream_of(whole(parameters, "seed"), text(parameters, "stream"))
    integers = random_integers(stream, start, delta.numel(), (scratch(0), scratch(1)))
    torch.le(integers, bound(number(parameters, "density")), out=out)
    torch.mul(out, delta, out=out)
