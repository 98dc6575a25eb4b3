"""Do the inputs of a step fit together? Names, layers, shapes, and tensors that are not numbers to average.

Models are matched by the names of their tensors. Every model of a step must have the same names and shapes: the
first differences are named, with the reason when it shows (another number of layers).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mergeflow.graph.nodes import Graph
from mergeflow.graph.values import Result
from mergeflow.models.layout import infer_layout, layer_counts

SHOWN = 3


def names_that_differ(inputs: Sequence[Result]) -> Iterator[str]:
    """One line per input whose tensors are not those of the first."""
    first = inputs[0]
    expected = layer_counts(infer_layout(first.tensors))
    for other in inputs[1:]:
        if other.tensors.keys() == first.tensors.keys():
            continue
        counts = layer_counts(infer_layout(other.tensors))
        stacks = [s for s in expected if s in counts and counts[s] != expected[s]]
        if stacks:
            stack = stacks[0]
            yield (
                f"{first.label} has {expected[stack]} layers in {stack}, {other.label} has {counts[stack]}: "
                "models merge only when they have the same layers"
            )
            continue
        for lacking, having in ((other, first), (first, other)):
            missing = [name for name in having.tensors if name not in lacking.tensors]
            if missing:
                yield f"{lacking.label} has no tensor {_some(missing)}, which {having.label} has"


def shapes_that_differ(graph: Graph, inputs: Sequence[Result]) -> Iterator[str]:
    """One line for the tensors of one name whose shapes are not all equal (the first few, and how many more)."""
    first = inputs[0]
    for other in inputs[1:]:
        odd = [
            name
            for name, tensor in other.tensors.items()
            if name in first.tensors and graph[tensor.node].shape != graph[first.tensors[name].node].shape
        ]
        if odd:
            name = odd[0]
            shapes = [list(graph[result.tensors[name].node].shape) for result in (first, other)]
            yield f"{_some(odd)}: shape {shapes[0]} in {first.label}, {shapes[1]} in {other.label}"


def is_buffer(graph: Graph, nodes: Sequence[int]) -> bool:
    """Whether any of these tensors holds integers or booleans: such a tensor is carried along, never averaged."""
    return any(not dtype.is_float for node in nodes if (dtype := graph[node].dtype) is not None)


def buffers_differ(graph: Graph, nodes: Mapping[str, int]) -> str | None:
    """Why integer tensors of one name, by model label, cannot be carried along; None when they are equal.

    Contents are compared by key, so a difference shows only once the digests are known.
    """
    labels = list(nodes)
    first = graph[nodes[labels[0]]]
    for label in labels[1:]:
        node = graph[nodes[label]]
        if node.dtype != first.dtype:
            return f"it is {first.dtype} in {labels[0]}, {node.dtype} in {label}"
        if node.key is not None and first.key is not None and node.key != first.key:
            return f"its contents in {labels[0]} and {label} differ"
    return None


def _some(names: Sequence[str]) -> str:
    more = f" (and {len(names) - SHOWN} more)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
