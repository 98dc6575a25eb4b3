"""What a step's result is made of, and what a whole recipe compiles to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mergeflow.dtypes import DType
from mergeflow.errors import Problem
from mergeflow.graph.ingredients import Ingredients
from mergeflow.graph.nodes import Graph
from mergeflow.methods.schema import Value as ParameterValue
from mergeflow.methods.schema import ValueType
from mergeflow.models.records import Checkpoint
from mergeflow.models.tokenizer import Tokenizer
from mergeflow.recipe.records import ModelReference, Output, Source


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
    """What one tensor is made of: shared parameters, and one mapping per input in listed order.

    `read` are the tensors it is made from, each the source and the tensor's name there: those of the inputs in the same
    order (but for deltas that lack it), then the base's. `ingredients` is the place in the recipe that says so, and
    `places` are those of `inputs` among its inputs.
    """

    shared: Mapping[str, ParameterValue | None]
    inputs: tuple[Mapping[str, ParameterValue | None], ...]
    read: tuple[tuple[Source, str], ...] = ()
    ingredients: Ingredients | None = None
    places: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Stack:
    """Where the layers of one stack of a result come from, for what a config.json says of each layer.

    Args:
        prefix: what stands before the layer's number in the names, such as ``model.layers``.
        layers: for each layer, the model (never a step: followed to the model its own sources came from) and the
            number of the layer there. Of several models merged into a layer, the first that its slice lists.
    """

    prefix: str
    layers: tuple[tuple[ModelReference, int], ...]


@dataclass(frozen=True, slots=True)
class MergedVocabulary:
    """The vocabulary that a step made of those of its models.

    Args:
        tokenizer: the tokens, and how text is cut into them.
        rows: of the embedding; at least one for each id.
        shared: how many tokens all of the models have.
        added: how many the step's base lacks.
        dropped: how many a model has and the result lacks.
    """

    step: str
    tokenizer: Tokenizer
    rows: int
    shared: int
    added: int
    dropped: int


@dataclass(frozen=True, slots=True)
class Result:
    """A model, or what a step makes: tensors by name, typed weights or delta.

    `donor` is the model whose config, tokenizer and other files belong to it. `nodes` are those of the graph that this
    step was the first to need. `stacks` are those that do not have the donor's layers, one by one. `vocabulary` and
    `chat_template` are None where they are those of the donor's own tokenizer.
    """

    label: str
    type: ValueType
    tensors: Mapping[str, Tensor]
    donor: ModelReference
    parameters: Mapping[str, Parameters] = field(default_factory=dict)
    nodes: range = range(0)
    stacks: tuple[Stack, ...] = ()
    vocabulary: MergedVocabulary | None = None
    chat_template: str | None = None


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One tensor of an output model: its name, its final value, and that value's dtype and shape."""

    name: str
    node: int
    dtype: DType
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CompiledOutput:
    """One model to write.

    Args:
        dtype: the name of the float format all its weights share, None when they differ.
        stacks: those that do not have the donor's layers, one by one: its config.json cannot stay as it is.
        vocabulary: the merged one; None where it is the donor's, or that of `tokenizer`.
        chat_template: in place of the donor's; None where it stays.
        type: weights, or a delta that is written as one.
    """

    output: Output
    donor: Checkpoint
    tokenizer: Checkpoint | None
    tensors: tuple[OutputTensor, ...]
    dtype: str | None
    stacks: tuple[Stack, ...] = ()
    vocabulary: MergedVocabulary | None = None
    chat_template: str | None = None
    type: ValueType = "weights"


@dataclass(frozen=True, slots=True)
class Compiled:
    """A recipe as a graph: every step's result, every output, and everything found wrong on the way."""

    graph: Graph
    results: Mapping[str, Result]
    outputs: tuple[CompiledOutput, ...]
    problems: tuple[Problem, ...]
    checkpoints: Mapping[ModelReference, Checkpoint]
