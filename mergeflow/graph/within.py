"""The part of the graph that belongs to one tensor of one step: from the tensor to what the step reads for it.

A walk ends at tensors of other steps, at tensors of files, and at tensors of a model that are views themselves (with
an adapter, quantised). It goes through the views of a merged vocabulary, which are the step's own doing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from mergeflow.graph.keys import canonical, combined_key
from mergeflow.graph.nodes import Graph
from mergeflow.graph.values import Compiled, Result
from mergeflow.recipe.records import Source, Step, StepReference

VOCABULARY = "vocabulary"


@dataclass(frozen=True, slots=True)
class Within:
    """The nodes of one tensor of one step, and those among what it reads that its value depends on.

    Args:
        nodes: what the step computes for it, in topological order.
        ends: what that is computed from.
    """

    nodes: tuple[int, ...]
    ends: frozenset[int]


def read_by(step: Step, result: Result, name: str) -> tuple[tuple[Source, str], ...]:
    """The tensors that one tensor of a step is made from, by source and name."""
    if step.is_adapter:  # an adapter alone, as it is
        return ((step.inputs[0].source, name),)
    made = result.parameters.get(name)
    return made.read if made is not None else ()


def node_of(compiled: Compiled, source: Source, name: str) -> int:
    """The value of a tensor of a model or of a step."""
    if isinstance(source, StepReference):
        return compiled.results[source.name].tensors[name].node
    return compiled.graph.load(compiled.checkpoints[source].tensors[name])


def between(graph: Graph, node: int, read: Set[int]) -> Within:
    """What is between a tensor of a step and the nodes that it is read from. A tensor that is carried has nothing."""
    nodes: set[int] = set()
    ends: set[int] = set()
    waiting = [node]
    while waiting:
        i = waiting.pop()
        if i in read or _is_read(graph, i):
            ends.add(i)
        elif i not in nodes:
            nodes.add(i)
            waiting.extend(graph[i].inputs)
    return Within(tuple(sorted(nodes)), frozenset(ends))


def within(compiled: Compiled, read: Sequence[tuple[Source, str]], node: int) -> Within:
    """What is between a tensor of a step and what it reads: a walk ends at tensors of files by itself."""
    steps = {node_of(compiled, *it) for it in read if isinstance(it[0], StepReference)}
    return between(compiled.graph, node, steps)


def reached(compiled: Compiled, read: Sequence[tuple[Source, str]], ends: Set[int]) -> tuple[tuple[Source, str], ...]:
    """Which tensors of `read` are among the nodes `ends`."""
    # The tensor itself, where it has a node of its own: looking one up by what it says takes a while.
    tensors = {id(compiled.graph[i].source) for i in ends}
    return tuple(it for it in read if _is_one_of(compiled, it, tensors, ends))


def _is_one_of(compiled: Compiled, read: tuple[Source, str], tensors: Set[int], ends: Set[int]) -> bool:
    source, name = read
    if not isinstance(source, StepReference) and id(compiled.checkpoints[source].tensors[name]) in tensors:
        return True
    return node_of(compiled, source, name) in ends


def row_maps(graph: Graph, node: int, read: Set[int]) -> str:
    """A digest of the row maps of the vocabulary views that a value is made from; empty when there are none."""
    views = [graph[i] for i in between(graph, node, read).nodes if graph[i].op == VOCABULARY]
    return combined_key([_digest(view.parameters) for view in views])[:12] if views else ""


def _digest(parameters: Mapping[str, object]) -> str:
    return combined_key([canonical(dict(parameters)).decode()])


def _is_read(graph: Graph, node: int) -> bool:
    it = graph[node]
    return it.kind == "load" or (it.kind == "view" and it.op != VOCABULARY)
