"""Do the inputs of a merge fit together? Layers, shapes, and tensors that are not numbers to average.

Tensors are matched by their names. Models may each have some that the others lack (`lacking.py`), but not most: then
they are of different architectures, and the first names that differ say so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mergeflow.errors import some
from mergeflow.graph.arrange import Entry
from mergeflow.graph.check import Finding
from mergeflow.graph.ingredients import Ingredients
from mergeflow.graph.nodes import Graph
from mergeflow.graph.stock import Stock
from mergeflow.models.vocabulary import vocabulary_hint
from mergeflow.recipe.records import Source

# Two models are alike when they share this part of the kinds of tensors of the one that has fewer.
ALIKE = 0.5


def misfits(ingredients: Ingredients, stocks: Mapping[Source, Stock]) -> Iterator[Finding]:
    """The inputs that do not fit the first one (the fields that name them), and why."""
    first, *others = ingredients.inputs
    for other in others:
        why = _misfit(stocks[first.source], stocks[other.source], is_whole=ingredients.layers is None)
        if why is not None:
            yield Finding(other.path, why)


def _misfit(first: Stock, other: Stock, *, is_whole: bool) -> str | None:
    """Why two inputs cannot be merged: another number of layers, or hardly a name in common."""
    if other.shapes.keys() == first.shapes.keys():
        return None
    if is_whole and first.type == other.type == "weights":
        expected, counts = first.layout.stacks, other.layout.stacks
        for stack, count in expected.items():
            if counts.get(stack, count) != count:
                return (
                    f"{first.label} has {count} layers in {stack}, {other.label} has {counts[stack]}: "
                    "models merge only when they have the same layers"
                )
    shared = first.kinds & other.kinds
    if len(shared) >= ALIKE * min(len(first.kinds), len(other.kinds)):
        return None
    lacking, having = (other, first) if first.shapes.keys() - other.shapes.keys() else (first, other)
    missing = [name for name in having.shapes if name not in lacking.shapes]
    return f"{lacking.label} lacks {some(missing)}, which {having.label} has: they are of different architectures"


def shapes_that_differ(entries: Sequence[Entry], stocks: Mapping[Source, Stock]) -> Iterator[Finding]:
    """One finding for the tensors of two inputs whose shapes are not equal."""
    odd: dict[tuple[str, Source, Source], list[tuple[Entry, list[int], list[int]]]] = {}
    for entry in entries:
        held = [
            (it, list(stocks[it.source].shapes[name]))
            for it, name in zip(entry.ingredients.inputs, entry.names, strict=True)
            if name is not None
        ]
        first, shape = held[0]
        for other, its_shape in held[1:]:
            if its_shape != shape:
                found = odd.setdefault((other.path, first.source, other.source), [])
                found.append((entry, shape, its_shape))
    for (path, first_source, other_source), found in odd.items():
        entry, shape, its_shape = found[0]
        more = [it.name for it, _, _ in found[1:]]
        others = f"; so do the shapes of {some(more)}" if more else ""
        yield Finding(
            path,
            f"the shapes of {entry.name} differ: {shape} in {stocks[first_source].label}, {its_shape} in "
            f"{stocks[other_source].label}{others}{vocabulary_hint(entry.name, shape, its_shape)}",
        )


def is_buffer(graph: Graph, nodes: Sequence[int]) -> bool:
    """Whether any of these tensors holds integers or booleans: such a tensor is carried along, never averaged."""
    return any(not dtype.is_float for node in nodes if (dtype := graph[node].dtype) is not None)


def contents_differ(graph: Graph, nodes: Sequence[tuple[str, int]]) -> str | None:
    """Why tensors of one name, with their models' labels, cannot be carried along; None when they are equal.

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
