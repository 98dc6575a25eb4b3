"""From the graph to tasks: cut it at what is known, group what belongs together, bundle what is small.

Targets that share a computed value are computed by one program, so that nothing is computed twice in a run and
tasks never wait for each other. Programs over small tensors are bundled: starting a task costs more than a norm's 2048
numbers.

A view is read from tensors of other shapes, which a program over its own shape cannot compute: they are targets of
tasks that run before (`tasks_before`), and read from the cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from mergeflow.graph.nodes import Graph, Node
from mergeflow.graph.program import Instruction, Place, Program, Reading, Sink
from mergeflow.methods.ops import OPS

Record = Mapping[str, object]

BUNDLE_ELEMENTS = 1 << 20  # a task of this many elements takes some 10 ms, a hundred times what starting it costs
BUNDLE_PROGRAMS = 256


@dataclass(frozen=True, slots=True)
class Target:
    """A value to compute (or read from the cache) and where it goes; no place: into the cache, under its key.

    `is_part` is of one that views of other targets are read from.
    """

    node: int
    name: str
    output: str
    place: Place | None
    is_part: bool = False


@dataclass(frozen=True, slots=True)
class Known:
    """What need not be computed: cached tensors by key, and statistics by key (without their values while planning)."""

    tensors: frozenset[str] = frozenset()
    cache_is_off: bool = False
    records: Mapping[str, Record | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Task:
    """The unit of scheduling: one program, or several small ones. `name` sorts in the order of the output."""

    name: str
    programs: tuple[Program, ...]

    @property
    def elements(self) -> int:
        return sum(program.size for program in self.programs)


def needed_nodes(graph: Graph, targets: Iterable[int], known: Known, *, through_parts: bool = True) -> list[int]:
    """The nodes a run evaluates or reads to get `targets`, in topological order; what is known cuts the graph.

    Args:
        through_parts: whether what views are made of is among them.
    """
    found: set[int] = set()
    waiting = list(targets)
    while waiting:
        i = waiting.pop()
        if i not in found:
            found.add(i)
            is_cut = graph[i].kind == "view" and not through_parts
            if not is_cut and not is_known(graph[i], known):
                waiting.extend(graph[i].inputs)
    return sorted(found)


def is_known(node: Node, known: Known) -> bool:
    """Whether a value is read instead of computed. A load is always read; its digest is its key."""
    if node.kind == "load":
        return True
    return node.key is not None and (
        node.key in known.records if node.kind == "statistic" else node.key in known.tensors
    )


def tasks_before(
    graph: Graph, targets: Sequence[Target], known: Known, unkept: Set[int] = frozenset()
) -> tuple[tuple[tuple[Task, ...], ...], Known]:
    """Waves of tasks that put into the cache what views of `targets` are made of, and what is known after them.

    Every task of a wave must be done before the next wave begins, and the last before the targets' own tasks.
    """
    waves: list[tuple[Task, ...]] = []
    waiting = [_parts_to_compute(graph, [target.node for target in targets], known)]
    while waiting[-1]:
        waiting.append(_parts_to_compute(graph, waiting[-1], known))
    for nodes in reversed(waiting):
        parts = [
            Target(i, _part_name(graph[i]), "", None, is_part=True) for i in nodes if not is_known(graph[i], known)
        ]
        if parts:
            waves.append(form_tasks(graph, parts, known, unkept))
            known = replace(known, tensors=known.tensors | {graph[part.node].key or "" for part in parts})
    return tuple(waves), known


def _parts_to_compute(graph: Graph, targets: Sequence[int], known: Known) -> list[int]:
    """What the views among `targets`, and all they depend on without a part of a view between, are computed from."""
    found: set[int] = set()
    for i in needed_nodes(graph, targets, known, through_parts=False):
        if graph[i].kind == "view" and not is_known(graph[i], known):
            found.update(
                j for j in _leaves(graph, i, known) if graph[j].kind != "load" and not is_known(graph[j], known)
            )
    return sorted(found)


def _part_name(node: Node) -> str:
    return f"a {node.op} of shape {list(node.shape)}, which a view is read from,"


def _leaves(graph: Graph, view: int, known: Known) -> Iterator[int]:
    """What a view is read from, through the views it is made of."""
    for j in graph[view].inputs:
        if graph[j].kind == "view" and not is_known(graph[j], known):
            yield from _leaves(graph, j, known)
        else:
            yield j


def form_tasks(
    graph: Graph, targets: Sequence[Target], known: Known, unkept: Set[int] = frozenset()
) -> tuple[Task, ...]:
    """Tasks that bring every target to its place, in the order of the targets.

    Args:
        unkept: nodes whose statistics are not to be written to the cache.
    """
    programs = [_program(graph, group, known, unkept) for group in _groups(graph, targets, known)]
    tasks: list[Task] = []
    bundle: list[Program] = []
    for program in programs:
        full = sum(p.size for p in bundle) + program.size > BUNDLE_ELEMENTS or len(bundle) >= BUNDLE_PROGRAMS
        if bundle and full:
            tasks.append(_task(len(tasks), bundle))
            bundle = []
        bundle.append(program)
    if bundle:
        tasks.append(_task(len(tasks), bundle))
    return tuple(tasks)


def _task(number: int, programs: Sequence[Program]) -> Task:
    return Task(f"task-{number:06d}", tuple(programs))


def _groups(graph: Graph, targets: Sequence[Target], known: Known) -> list[list[Target]]:
    """Targets joined when they need the same computed value, in the order of their first target."""
    owner: dict[int, int] = {}
    parent = list(range(len(targets)))

    def root(k: int) -> int:
        while parent[k] != k:
            parent[k] = parent[parent[k]]
            k = parent[k]
        return k

    for k, target in enumerate(targets):
        for i in needed_nodes(graph, [target.node], known, through_parts=False):
            if not is_known(graph[i], known):
                parent[root(k)] = root(owner.setdefault(i, k))
    groups: dict[int, list[Target]] = {}
    for k, target in enumerate(targets):
        groups.setdefault(root(k), []).append(target)
    return list(groups.values())  # a dict keeps the order of insertion: that of each group's first target


def _program(graph: Graph, targets: Sequence[Target], known: Known, unkept: Set[int]) -> Program:
    place: dict[int, int] = {}
    instructions: list[Instruction] = []
    for i in needed_nodes(graph, [target.node for target in targets], known, through_parts=False):
        place[i] = len(instructions)
        instructions.append(_instruction(graph, graph[i], place, known, keep=i not in unkept))
    sinks = tuple(Sink(place[it.node], it.name, it.output, it.place, it.is_part) for it in targets)
    return Program(graph[targets[0].node].shape, tuple(instructions), sinks)


def _instruction(graph: Graph, node: Node, place: Mapping[int, int], known: Known, *, keep: bool) -> Instruction:
    key = node.key or ""
    if node.kind == "load":
        return Instruction("load", "load", (), {}, node.dtype, key, source=node.source)
    if is_known(node, known):
        if node.kind == "statistic":
            return Instruction(node.op, "record", (), {}, None, key, record=known.records[key])
        return Instruction(node.op, "cached", (), {}, node.dtype, key)
    if node.kind == "view":
        return Instruction(node.op, "view", (), {}, node.dtype, key, reading=_reading(graph, node, known))
    inputs = tuple(place[i] for i in node.inputs)
    parameters = node.parameters
    if OPS[node.op].random:
        # Not a parameter of the node, whose key has the keys of its inputs in it already.
        parameters = {**parameters, "stream": graph[node.inputs[0]].key or ""}
    return Instruction(node.op, node.kind, inputs, parameters, node.dtype, key, keep=keep)


def _reading(graph: Graph, node: Node, known: Known) -> Reading:
    """How a view, or a part of one, is read; a part that is computed is in the cache by then."""
    assert node.dtype is not None  # statistics are no parts
    key = node.key or ""
    if node.kind != "view" or is_known(node, known):
        return Reading(key, node.dtype, node.shape, node.source)
    parts = tuple(_reading(graph, graph[i], known) for i in node.inputs)
    return Reading(key, node.dtype, node.shape, None, node.op, node.parameters, parts)
