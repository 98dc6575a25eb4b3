"""Keys of values that were planned before the digests of their inputs were known.

A node, or an instruction, gets its key when what it is made of has one: by the rule of `graph.nodes`, so it is the key
that it would have had from the start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from mergeflow.graph.nodes import Graph, value_key
from mergeflow.graph.program import Instruction, Program, Reading, Sink
from mergeflow.graph.tasks import Known
from mergeflow.methods.ops import OPS
from mergeflow.models.records import TensorSource

Digests = Mapping[TensorSource, str]


def lacks_keys(program: Program) -> bool:
    """Whether a program was planned before all of its inputs had digests."""
    return any(not instruction.key for instruction in program.instructions)


def with_keys(program: Program, digests: Digests) -> Program:
    """The program with every key, from the digests of its inputs that had none."""
    made: list[Instruction] = []
    for instruction in program.instructions:
        made.append(instruction if instruction.key else _with_key(instruction, made, digests))
    return replace(program, instructions=tuple(made), sinks=tuple(_once_each(program, made)))


def _once_each(program: Program, made: Sequence[Instruction]) -> Iterator[Sink]:
    """The sinks, less those of values that are another sink's of the cache: unlike values may turn out to be equal."""
    seen: set[str] = set()
    for sink in program.sinks:
        key = made[sink.instruction].key
        if sink.place is not None or key not in seen:
            yield sink
        if sink.place is None:
            seen.add(key)


def with_inputs(program: Program, digests: Digests) -> Program:
    """The program with keys for those of its inputs in files that `digests` has."""
    made = [
        replace(it, key=digests[it.source]) if not it.key and it.source is not None and it.source in digests else it
        for it in program.instructions
    ]
    return replace(program, instructions=tuple(made))


def _with_key(instruction: Instruction, before: list[Instruction], digests: Digests) -> Instruction:
    if instruction.source is not None:
        return replace(instruction, key=digests[instruction.source])
    if instruction.reading is not None:
        reading = _reading(instruction.reading, digests)
        return replace(instruction, key=reading.key, reading=reading)
    keys = [before[i].key for i in instruction.inputs]
    parameters = instruction.parameters
    if OPS[instruction.op].random:
        # `stream` is what the task adds (graph.tasks); the key of the first input is in the key already.
        parameters = {**parameters, "stream": keys[0]}
    own = {name: value for name, value in parameters.items() if name != "stream"}
    # The shape enters only a view's key, and a view is a reading.
    key = value_key(instruction.op, own, instruction.dtype, (), keys)
    return replace(instruction, key=key or "", parameters=parameters)


def _reading(reading: Reading, digests: Digests) -> Reading:
    if reading.key:
        return reading
    if reading.source is not None:
        return replace(reading, key=digests[reading.source])
    parts = tuple(_reading(part, digests) for part in reading.parts)
    key = value_key(reading.op, reading.parameters, reading.dtype, reading.shape, [part.key for part in parts])
    return replace(reading, key=key or "", parts=parts)


def computed(program: Program) -> list[str]:
    """The keys of what a program computes, and might find in the cache."""
    return [it.key for it in program.instructions if it.kind not in ("load", "cached", "record")]


def with_known(program: Program, known: Known) -> Program:
    """What is left of a program when some of what it computes turns out to be known."""
    instructions = [_as_known(instruction, known) for instruction in program.instructions]
    sinks = [
        sink for sink in program.sinks if sink.place is not None or instructions[sink.instruction].kind != "cached"
    ]
    needed: set[int] = set()
    waiting = [sink.instruction for sink in sinks]
    while waiting:
        i = waiting.pop()
        if i not in needed:
            needed.add(i)
            waiting += instructions[i].inputs
    place = {i: number for number, i in enumerate(sorted(needed))}
    left = [replace(instructions[i], inputs=tuple(place[j] for j in instructions[i].inputs)) for i in place]
    return Program(
        program.shape, tuple(left), tuple(replace(sink, instruction=place[sink.instruction]) for sink in sinks)
    )


def _as_known(it: Instruction, known: Known) -> Instruction:
    if it.kind == "statistic" and it.key in known.records:
        return Instruction(it.op, "record", (), {}, None, it.key, record=known.records[it.key])
    if it.kind not in ("load", "record") and it.key in known.tensors:
        return Instruction(it.op, "cached", (), {}, it.dtype, it.key)
    return it


class LateKeys:
    """The keys of a graph's nodes, as digests of its inputs become known. One thread at a time.

    Args:
        graph: with the digests that were known when it was made.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._digests: dict[TensorSource, str] = {}
        self._keys: dict[int, str] = {}

    @property
    def digests(self) -> Digests:
        """All the digests known by now."""
        return {**self._graph.digests, **self._digests}

    def learn(self, digests: Digests) -> None:
        """Note digests of inputs."""
        self._digests.update(digests)

    def key(self, node: int) -> str | None:
        """The key of a node; None while a digest it depends on is missing."""
        for i in self._graph.upstream([node]):
            if i not in self._keys and (key := self._found(i)) is not None:
                self._keys[i] = key
        return self._keys.get(node)

    def _found(self, i: int) -> str | None:
        node = self._graph[i]
        if node.key is not None:
            return node.key
        if node.source is not None:
            return self._digests.get(node.source)
        return value_key(node.op, node.parameters, node.dtype, node.shape, [self._keys.get(j) for j in node.inputs])
