"""MAGPRUNE of DELLA: entries are dropped at random, the smaller ones of a row more often than the larger ones.

    rank r of an entry in its row, 1 for the smallest magnitude, n for the largest
    p = (density - epsilon) + 2 epsilon (r - 1) / (n - 1)        kept where u < p; p = density in a row of one

Among equal magnitudes the one with the lower index counts as larger, as in the order statistics. A rank asks for a
sort: of one integer per entry, its magnitude's bits above its index, which is several times faster than sorting
numbers beside their indices, and leaves no two equal. What is left is to write the bound that belongs to each place of
the sorted row to where its entry came from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mergeflow.methods.kernels.chances import bounds, keep_probabilities
from mergeflow.methods.kernels.counter_random import random_integers
from mergeflow.methods.kernels.protocols import Record, Scratch
from mergeflow.methods.kernels.streams import stream_of
from mergeflow.methods.values import flag, number, text, whole

# Rows are sorted some at a time, so that what is sorted stays in the processor's cache.
SORTED_AT_ONCE = 65536
MAGNITUDE_BITS = 0x7FFFFFFF
INDEX_BITS = 0xFFFFFFFF


def magprune(
    blocks: Sequence[Tensor],
    records: Sequence[Record],
    parameters: Mapping[str, object],
    out: Tensor,
    scratch: Scratch,
    start: int,
) -> None:
    """R = m * D over rows (rows, columns), m = 1 where u < p, else 0; with `divide`, R = m * D / p.

    Deep, Bhardwaj, Poria: DELLA-Merging, 2406.11617. A NaN or infinity that is dropped gives NaN. Parameters: density,
    epsilon (0 < density - epsilon, density + epsilon < 1), divide, seed, stream. Scratch: four buffers.
    """
    (delta,) = blocks
    rows, columns = delta.shape
    density, epsilon = number(parameters, "density"), number(parameters, "epsilon")
    chances = keep_probabilities(columns, density, epsilon)
    largest = torch.from_numpy(bounds(chances)).to(delta.device)
    divisors = torch.from_numpy(chances).to(delta) if flag(parameters, "divide") else None

    placed = _integers(scratch(2), rows * columns).view(rows, columns)
    for first in range(0, rows, max(1, SORTED_AT_ONCE // columns)):
        some = slice(first, min(rows, first + max(1, SORTED_AT_ONCE // columns)))
        order = descending_order(delta[some])
        placed[some].scatter_(1, order, largest.expand(order.shape))
        if divisors is not None:
            scratch(3)[some].scatter_(1, order, divisors.expand(order.shape))

    stream = stream_of(whole(parameters, "seed"), text(parameters, "stream"))
    integers = random_integers(stream, start, delta.numel(), (scratch(0), scratch(1))).view(rows, columns)
    torch.le(integers, placed, out=out)
    torch.mul(out, delta, out=out)
    if divisors is not None:
        torch.div(out, scratch(3), out=out)


def descending_order(values: Tensor) -> Tensor:
    """The columns of each row in order of falling magnitude, of equal ones the first one first: (rows, columns) int64.

    NaN comes before infinity.
    """
    if values.dtype != torch.float32 or values.device.type != "cpu":
        return torch.sort(values.abs(), dim=-1, descending=True, stable=True).indices

    # The complement of the magnitude's bits, so that rising keys are falling magnitudes, and then rising indices.
    keys = values.view(torch.int32).bitwise_not().bitwise_and_(MAGNITUDE_BITS).to(torch.int64)
    keys.bitwise_left_shift_(32).bitwise_or_(torch.arange(values.shape[1]))
    keys.numpy().sort(axis=-1)  # vectorised, unlike torch's
    return keys.bitwise_and_(INDEX_BITS)


def _integers(buffer: Tensor, count: int) -> Tensor:
    """A contiguous float buffer's memory as int32 (count,)."""
    return buffer.view(-1).view(torch.int32)[:count]
