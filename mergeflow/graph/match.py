"""Do the inputs of a step fit together? Names, layers, shapes, and tensors that are not numbers to average.

Models are matched by the names of their tensors. Every model of a step must have the same names and shapes: the
first differences are named, with the reason when it shows (another number of layers).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mergeflow.graph.nodes import Graph
from mergeflow.graph.values import Result
from mergeflow.models.layout import infer_layout, layer_counts
from mergeflow.recipe.records import Source

SHOWN = 3


def misfits(graph: Graph, inputs: Mapping[Source, Result]) -> Iterator[tuple[Source, str]]:
    """The inputs that do not fit the first one, and why."""
    (_, first), *others = inputs.items()
    for source, other in others:
        for difference in (*_names_that_differ(first, other), *_shapes_that_differ(graph, first, other)):
            yield source, difference


def _names_that_differ(first: Result, other: Result) -> Iterator[str]:
    """Why two inputs have not the same tensors: another number of layers, or names that one of them lacks."""
    if other.tensors.keys() == first.tensors.keys():
        return
    expected, counts = layer_counts(infer_layout(first.tensors)), layer_counts(infer_layout(other.tensors))
    stacks = [stack for stack in expected if stack in counts and counts[stack] != expected[stack]]
    if stacks:
        stack = stacks[0]
        yield (
            f"{first.label} has {expected[stack]} layers in {stack}, {other.label} has {counts[stack]}: "
            "models merge only when they have the same layers"
        )
        return
    for lacking, having in ((other, first), (first, other)):
        missing = [name for name in having.tensors if name not in lacking.tensors]
        if missing:
            yield f"{lacking.label} lacks {_some(missing)}, which {having.label} has"


def _shapes_that_differ(graph: Graph, first: Result, other: Result) -> Iterator[str]:
    """One line for the tensors of one name whose shapes are not equal."""

    def shape(result: Result, name: str) -> list[int]:
        return list(graph[result.tensors[name].node].shape)

    odd = [name for name in other.tensors if name in first.tensors and shape(first, name) != shape(other, name)]
    if odd:
        name, *more = odd
        others = f"; so do the shapes of {_some(more)}" if more else ""
        yield (
            f"the shapes of {name} differ: {shape(first, name)} in {first.label}, {shape(other, name)} in "
            f"{other.label}{others}"
        )


def is_buffer(graph: Graph, nodes: Sequence[int]) -> bool:
    """Whether any of these tensors holds integers or booleans: such a tensor is carried along, never averaged."""
    return any(not dtype.is_float for node in nodes if (dtype := graph[node].dtype) is not None)


def buffers_differ(graph: Graph, nodes: Sequence[tuple[str, int]]) -> str | None:
    """Why integer tensors of one name, with their models' labels, cannot be carried along; None when they are equal.

    Contents are compared by key, so a difference shows only once the digests are known.
    """
    (first_label, first_node), *others = nodes
    first = graph[first_node]
    for label, other in others:
        node = graph[other]
        if node.dtype != first.dtype:
            return f"it is {first.dtype} in {first_label}, {node.dtype} in {label}"
        if node.key is not None and first.key is not None and node.key != first.key:
            return f"its contents in {first_label} and {label} differ"
    return None


def _some(names: Sequence[str]) -> str:
    more = f" (and {len(names) - SHOWN} more)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
