"""How an executor calls kernels: the two protocols, and the one place that loads a kernel by its name.

Pointwise: called once per block, in any order, on any thread.

    for start, blocks in stream(size):                       # any cut of the tensor into consecutive blocks (n,)
        kernel(blocks, records, parameters, out, scratch, start)

Rowwise: the same, on blocks of whole rows, (rows, columns).

Whole: called once, with everything.

    result = kernel(tensors, records, parameters)

Statistic: one object per tensor and run, fed in rising order, until it has its record.

    statistic = kernel(size, parameters)
    if statistic.needs_sample:
        statistic.sample(gather(sample_size(size)))
    record = None
    while record is None:
        for start, blocks in stream(statistic.wanted):       # or of everything: what is not wanted is passed over
            statistic.update(start, blocks, scratch)
        record = statistic.finish()
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol, cast

from mergeflow.methods.schema import Op

if TYPE_CHECKING:
    from torch import Tensor

Record = Mapping[str, int | float | list[float]]
Scratch = Callable[[int], "Tensor"]

# What a statistic sums or counts piece by piece, it does by pieces of the tensor that start at multiples of this many
# elements. Blocks may start anywhere (where an operation needs rows, they are whole rows), so a statistic cuts each one
# with `pieces`: then its record does not depend on how the tensor was cut into blocks.
SUM_BLOCK = 65536

# Enough to bracket an order statistic to about 2 % of the elements. A smaller tensor is worth a smaller sample.
LARGEST_SAMPLE = 65536
SAMPLED_SHARE = 64


class PointwiseKernel(Protocol):
    """Computes one block of a tensor from the same block of its inputs.

    Args:
        blocks: the tensor inputs, each (n,), contiguous, in the compute dtype (float32 or float64); not modified.
        records: the record inputs, in the order of the op's inputs.
        parameters: the node's parameters.
        out: (n,), the result, in the compute dtype (`cast`: in its own); shares no memory with a block.
        scratch: gives the i-th reusable buffer, (n,), compute dtype, on the device of the blocks.
        start: flat index in the whole tensor of the block's first element.
    """

    def __call__(
        self,
        blocks: Sequence[Tensor],
        records: Sequence[Record],
        parameters: Mapping[str, object],
        out: Tensor,
        scratch: Scratch,
        start: int,
    ) -> None: ...


class RowwiseKernel(Protocol):
    """Computes some rows of a tensor from the same rows of its inputs; a row runs along the last axis.

    As `PointwiseKernel`, but the blocks, `out` and what `scratch` gives are (rows, columns), whole rows, contiguous. A
    tensor of one axis, or none, is one row. A row of the result depends on that row alone, not on how many come along.
    """

    def __call__(
        self,
        blocks: Sequence[Tensor],
        records: Sequence[Record],
        parameters: Mapping[str, object],
        out: Tensor,
        scratch: Scratch,
        start: int,
    ) -> None: ...


class WholeKernel(Protocol):
    """Computes a tensor from whole tensors.

    Args:
        tensors: the tensor inputs in their own shape, at least one element each, contiguous, in the compute dtype; not
            modified.
        records: the record inputs, in the order of the op's inputs.
        parameters: the node's parameters.

    Returns:
        A tensor of that shape; it is stored in the compute dtype. One of `tensors` itself may be returned.

    A run states its memory beforehand: a kernel may have alive at most WHOLE_COPIES tensors of the inputs' size, its
    result included.
    """

    def __call__(
        self, tensors: Sequence[Tensor], records: Sequence[Record], parameters: Mapping[str, object]
    ) -> Tensor: ...


class Statistic(Protocol):
    """Computes a small record of whole tensors from passes over their blocks."""

    @property
    def needs_sample(self) -> bool:
        """Whether `sample` makes the passes cheaper. The record never depends on it."""

    @property
    def wanted(self) -> range:
        """The elements that the next pass must bring (it may bring more): all at first, later perhaps one piece.

        Starts at a multiple of SUM_BLOCK; stops at one, or at the tensor's end.
        """

    def sample(self, blocks: Sequence[Tensor]) -> None:
        """Takes a gathered sample of each input, (s,), in rising order of index and spread over the tensor."""

    def update(self, start: int, blocks: Sequence[Tensor], scratch: Scratch) -> None:
        """Takes one block of each input, (n,), n > 0, that begins at the flat index `start`, in rising order.

        Blocks of one pass follow on each other within `wanted`, but are cut anywhere: a piece of the tensor (SUM_BLOCK
        elements) may come in several blocks, and a block may hold parts of several.
        """

    def finish(self) -> Record | None:
        """The record, at the end of a pass; None when another pass over `wanted` is needed."""


class StatisticKernel(Protocol):
    """Makes the statistic of tensors of `size` elements."""

    def __call__(self, size: int, parameters: Mapping[str, object]) -> Statistic: ...


def pieces(start: int, count: int, length: int = SUM_BLOCK) -> list[tuple[int, int]]:
    """A block of `count` elements from index `start` on, cut at multiples of `length`: (begin, end) in the block."""
    cuts = range((start // length + 1) * length, start + count, length)
    return list(pairwise([0, *(cut - start for cut in cuts), count])) if count else []


def sample_size(size: int) -> int:
    """How many elements to gather for `Statistic.sample` from a tensor of `size`: runs of 1024 spread evenly do."""
    return min(LARGEST_SAMPLE, size // SAMPLED_SHARE)


def pointwise_kernel(op: Op) -> PointwiseKernel:
    """The kernel of a pointwise operation; imports torch."""
    return cast(PointwiseKernel, _load(op.kernel))


def rowwise_kernel(op: Op) -> RowwiseKernel:
    """The kernel of a row-wise operation; imports torch."""
    return cast(RowwiseKernel, _load(op.kernel))


def whole_kernel(op: Op) -> WholeKernel:
    """The kernel of an operation on whole tensors; imports torch."""
    return cast(WholeKernel, _load(op.kernel))


def statistic_kernel(op: Op) -> StatisticKernel:
    """The kernel of a statistic; imports torch."""
    return cast(StatisticKernel, _load(op.kernel))


def _load(reference: str) -> object:
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)
