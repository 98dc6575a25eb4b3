"""What a step's result is made of, and what a whole recipe compiles to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mergeflow.dtypes import DType
from mergeflow.errors import Problem
from mergeflow.graph.nodes import Graph
from mergeflow.methods.schema import Value as ParameterValue
from mergeflow.methods.schema import ValueType
from mergeflow.models.records import Checkpoint
from mergeflow.recipe.records import ModelReference, Output


@dataclass(frozen=True, slots=True)
class Tensor:
    """One named tensor of a model or of a step's result.

    Args:
        node: its value in the graph.
        stored: the dtype it is written in when nobody says otherwise: that of the tensors it was made from
            (the widest of them), or what a step's `dtype` or `out_dtype` asked for.
    """

    node: int
    stored: DType


@dataclass(frozen=True, slots=True)
class Parameters:
    """The resolved parameters of one tensor: shared ones, and one mapping per input in listed order."""

    shared: Mapping[str, ParameterValue | None]
    inputs: tuple[Mapping[str, ParameterValue | None], ...]


@dataclass(frozen=True, slots=True)
class Result:
    """A model, or what a step makes: tensors by name, typed weights or delta.

    `donor` is the model whose config, tokenizer and other files belong to it. `nodes` are those of the graph that this
    step was the first to need.
    """

    label: str
    type: ValueType
    tensors: Mapping[str, Tensor]
    donor: ModelReference
    parameters: Mapping[str, Parameters] = field(default_factory=dict)
    nodes: range = range(0)


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One tensor of an output model: its name, its final value, and that value's dtype and shape."""

    name: str
    node: int
    dtype: DType
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CompiledOutput:
    """One model to write. `dtype` is the name of the float format all its weights share, None when they differ."""

    output: Output
    donor: Checkpoint
    tokenizer: Checkpoint | None
    tensors: tuple[OutputTensor, ...]
    dtype: str | None


@dataclass(frozen=True, slots=True)
class Compiled:
    """A recipe as a graph: every step's result, every output, and everything found wrong on the way."""

    graph: Graph
    results: Mapping[str, Result]
    outputs: tuple[CompiledOutput, ...]
    problems: tuple[Problem, ...]
    checkpoints: Mapping[ModelReference, Checkpoint]
