"""Evaluates a lowered method on tensors in memory: the smallest executor that keeps to the kernels' protocols.

Call ── lower(call, emit) ──> Node(op, inputs, parameters) ── evaluate(node, block) ──> Tensor
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mergeflow.methods.kernels.protocols import (
    SUM_BLOCK,
    Record,
    Statistic,
    pointwise_kernel,
    rowwise_kernel,
    sample_size,
    statistic_kernel,
    whole_kernel,
)
from mergeflow.methods.ops import OPS
from mergeflow.methods.schema import REQUIRED, Call, Method, Op, Operand, ValueType
from mergeflow.methods.table import METHODS

RUN = 1024


@dataclass(frozen=True, eq=False)
class Leaf:
    """An input tensor; two leaves are the same value only if they are the same object."""

    tensor: Tensor


@dataclass(frozen=True)
class Node:
    """One emitted operation; equal nodes are equal values, as in the real graph."""

    op: str
    inputs: tuple[Leaf | Node, ...]
    parameters: tuple[tuple[str, object], ...]

    def ancestors(self) -> Iterator[Node]:
        """This node and every node it needs."""
        yield self
        for value in self.inputs:
            if isinstance(value, Node):
                yield from value.ancestors()


def emit(op: str, inputs: Sequence[Any], **parameters: object) -> Any:
    """The `Emit` of these tests."""
    assert op in OPS
    frozen = {name: tuple(value) if isinstance(value, list) else value for name, value in parameters.items()}
    return Node(op, tuple(inputs), tuple(sorted(frozen.items())))


@dataclass(frozen=True)
class Model:
    """An input of a merge: its tensor, what it is, and its own parameters."""

    tensor: Tensor
    parameters: Mapping[str, Any] = field(default_factory=dict)
    type: ValueType = "weights"


def lower(name: str, models: Sequence[Model], base: Tensor | None = None, seed: int = 0, **shared: Any) -> Leaf | Node:
    """Lowers a method, its parameters completed with their defaults."""
    method = METHODS[name]
    leaves: dict[int, Any] = {id(model.tensor): Leaf(model.tensor) for model in models}
    own = [_complete(method, model.parameters, shared=False) for model in models]
    operands = tuple(
        Operand(leaves[id(model.tensor)], model.type, values) for model, values in zip(models, own, strict=True)
    )
    shape = tuple((models[0].tensor if base is None else base).shape)
    base_leaf: Any = None if base is None else leaves.get(id(base), Leaf(base))
    result: Any = method.lower(Call(operands, base_leaf, _complete(method, shared, shared=True), shape, seed), emit)
    assert isinstance(result, Leaf | Node)
    return result


def merge(
    name: str,
    models: Sequence[Model],
    base: Tensor | None = None,
    block: int | None = None,
    **shared: Any,
) -> Tensor:
    """Lowers and evaluates a method: the merged tensor, in the shape of its inputs."""
    return evaluate(lower(name, models, base, **shared), block).reshape(models[0].tensor.shape)


def _complete(method: Method, given: Mapping[str, Any], shared: bool) -> dict[str, Any]:
    values = {}
    for parameter in method.parameters:
        if (parameter.scope == "shared") == shared:
            value = given.get(parameter.name, parameter.default)
            assert value is not REQUIRED, f"{method.name} needs {parameter.name}"
            values[parameter.name] = value
    assert set(given) <= set(values)
    return values


def evaluate(value: Leaf | Node, block: int | None = None) -> Tensor:
    """The flat tensor of a value, computed in blocks of `block` elements (None: the whole tensor as one block)."""
    memory: dict[Node, Any] = {}

    def compute(current: Leaf | Node) -> Any:
        if isinstance(current, Leaf):
            return current.tensor
        if current not in memory:
            inputs = [compute(source) for source in current.inputs]
            memory[current] = apply(OPS[current.op], inputs, dict(current.parameters), block)
        return memory[current]

    result = compute(value)
    assert isinstance(result, Tensor)
    return result.reshape(-1)


def apply(op: Op, inputs: Sequence[Any], parameters: Mapping[str, object], block: int | None = None) -> Any:
    """One operation on tensors of one shape and records, streamed in blocks: a tensor of that shape, or a record."""
    shaped = [value.contiguous() for value in inputs if isinstance(value, Tensor)]
    tensors = [tensor.reshape(-1) for tensor in shaped]
    records = [value for value in inputs if not isinstance(value, Tensor)]
    if op.random:
        parameters = {"stream": stream_name(tensors[0]), **parameters}
    if op.kind == "statistic":
        return gather_statistic(statistic_kernel(op)(tensors[0].numel(), parameters), tensors, block)

    if op.kind == "whole":
        return whole_kernel(op)(shaped, records, parameters)

    out = torch.full_like(tensors[0], torch.nan)
    kernel = rowwise_kernel(op) if op.kind == "rowwise" else pointwise_kernel(op)
    row = row_length(shaped[0]) if op.kind == "rowwise" else None
    for start, stop in cut(range(tensors[0].numel()), block, row or 1):
        *views, target = [
            flat[start:stop] if row is None else flat[start:stop].view(-1, row) for flat in (*tensors, out)
        ]
        kernel(views, records, parameters, target, scratch_like(target), start)
    return out.reshape(shaped[0].shape)


def stream_name(tensor: Tensor) -> str:
    """What stands for the key of an operation's first input: a digest of its bytes."""
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def row_length(tensor: Tensor) -> int:
    """The length of a tensor's last axis; a number is a row of one. An empty row counts as one too."""
    return max(1, tensor.shape[-1]) if tensor.ndim else 1


def gather_statistic(
    statistic: Statistic, tensors: Sequence[Tensor], block: int | None, most_passes: int = 100
) -> Record:
    """Feeds a statistic until it has its record."""
    size = tensors[0].numel()
    if statistic.needs_sample:
        places = sample_places(size)
        statistic.sample([tensor[places] for tensor in tensors])
    for _ in range(most_passes):
        for start, stop in cut(statistic.wanted, block):
            views = [tensor[start:stop] for tensor in tensors]
            statistic.update(start, views, scratch_like(views[0]))
        record = statistic.finish()
        if record is not None:
            return record
    raise AssertionError(f"no record after {most_passes} passes")


def sample_places(size: int) -> Tensor:
    """Runs of RUN elements, spread evenly over `size`."""
    runs = max(sample_size(size) // RUN, 1)
    starts = np.linspace(0, size - RUN, runs).astype(np.int64)
    return torch.from_numpy((starts[:, None] + np.arange(RUN)).reshape(-1))


def cut(elements: range, block: int | None, row: int = 1) -> Iterator[tuple[int, int]]:
    """Consecutive blocks of a range, of whole rows, at least one; an empty range is one empty block."""
    step = max((block or max(len(elements), 1)) // row, 1) * row
    for start in range(elements.start, max(elements.stop, elements.start + 1), step):
        yield start, min(start + step, elements.stop)


def scratch_like(block: Tensor) -> Callable[[int], Tensor]:
    """Scratch buffers full of NaN, so that a kernel that reads before it writes is found out."""
    buffers: dict[int, Tensor] = {}
    return lambda index: buffers.setdefault(index, torch.full_like(block, torch.nan))


# A multiple of nothing is what blocks of whole rows are.
BLOCKS = (SUM_BLOCK, 2 * SUM_BLOCK, 50_021, None)
