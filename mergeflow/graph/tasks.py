"""From the graph to tasks: cut it at what is known, group what belongs together, bundle what is small.

Targets that share a computed value are computed by one program, so that nothing is computed twice in a run and
tasks never wait for each other. Programs over small tensors are bundled: starting a task costs more than a norm's 2048
numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from mergeflow.graph.nodes import Graph, Node
from mergeflow.graph.program import Instruction, Place, Program, Sink
from mergeflow.methods.ops import OPS

Record = Mapping[str, object]

BUNDLE_ELEMENTS = 1 << 20  # a task of this many elements takes some 10 ms, a hundred times what starting it costs
BUNDLE_PROGRAMS = 256


@dataclass(frozen=True, slots=True)
class Target:
    """A value to compute (or read from the cache) and where it goes; no place: into the cache, under its key."""

    node: int
    name: str
    output: str
    place: Place | None


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


def needed_nodes(graph: Graph, targets: Iterable[int], known: Known) -> list[int]:
    """The nodes a run evaluates or reads to get `targets`, in topological order; what is known cuts the graph."""
    found: set[int] = set()
    waiting = list(targets)
    while waiting:
        i = waiting.pop()
        if i not in found:
            found.add(i)
            if not is_known(graph[i], known):
                waiting.extend(graph[i].inputs)
    return sorted(found)


def is_known(node: Node, known: Known) -> bool:
    """Whether a value is read instead of computed. A load is always read; its digest is its key."""
    if node.kind == "load":
        return True
    return node.key is not None and (
        node.key in known.records if node.kind == "statistic" else node.key in known.tensors
    )


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
        for i in needed_nodes(graph, [target.node], known):
            if not is_known(graph[i], known):
                parent[root(k)] = root(owner.setdefault(i, k))
    groups: dict[int, list[Target]] = {}
    for k, target in enumerate(targets):
        groups.setdefault(root(k), []).append(target)
    return list(groups.values())  # a dict keeps the order of insertion: that of each group's first target


def _program(graph: Graph, targets: Sequence[Target], known: Known, unkept: Set[int]) -> Program:
    place: dict[int, int] = {}
    instructions: list[Instruction] = []
    for i in needed_nodes(graph, [target.node for target in targets], known):
        place[i] = len(instructions)
        instructions.append(_instruction(graph, graph[i], place, known, keep=i not in unkept))
    sinks = tuple(Sink(place[target.node], target.name, target.output, target.place) for target in targets)
    return Program(graph[targets[0].node].shape, tuple(instructions), sinks)


def _instruction(graph: Graph, node: Node, place: Mapping[int, int], known: Known, *, keep: bool) -> Instruction:
    key = node.key or ""
    if node.kind == "load":
        return Instruction("load", "load", (), {}, node.dtype, key, source=node.source)
    if is_known(node, known):
        if node.kind == "statistic":
            return Instruction(node.op, "record", (), {}, None, key, record=known.records[key])
        return Instruction(node.op, "cached", (), {}, node.dtype, key)
    inputs = tuple(place[i] for i in node.inputs)
    parameters = node.parameters
    if OPS[node.op].random:
        # Not a parameter of the node, whose key has the keys of its inputs in it already.
        parameters = {**parameters, "stream": graph[node.inputs[0]].key or ""}
    return Instruction(node.op, node.kind, inputs, parameters, node.dtype, key, keep=keep)
