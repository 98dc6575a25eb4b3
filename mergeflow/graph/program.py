"""A program: what one task evaluates, block by block, over tensors of one shape.

    pass 1   load a, load b            -> gram(a, b)                  statistics of level 1
    pass 2   load a, load b, gram      -> slerp -> (kept) -> gram ... statistics of level 2
    pass 3   ...                       -> cast  -> sink               bytes of the output

A statistic is known only when its whole input has been seen, so a value that depends on it waits for the next
pass. Pass p computes the statistics of level p and writes the sinks whose values are ready by then. Everything else
in a program is pointwise: a block of a result needs only the same block of its inputs.

A value that a later pass reads again is *stored* when computing it again would cost more than reading it back; a
chain of n steps then costs n, not n squared. Inputs read in several passes are *retained*. Where both lie (memory or
a scratch file) is decided by `graph.memory`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from mergeflow.dtypes import DType
from mergeflow.methods.ops import OPS
from mergeflow.models.records import TensorSource

Kind = Literal["load", "cached", "record", "pointwise", "statistic"]

# Nanoseconds per element on one core, measured (docs/performance.md): reading two bytes from the page cache, and
# writing then reading four bytes of a stored value.
READ_COST = 0.5
STORE_COST = 3.0


@dataclass(frozen=True, slots=True)
class Instruction:
    """One value of a program. `inputs` are places of earlier instructions.

    Args:
        kind: ``load`` reads `source`; ``cached`` reads the cached tensor `key`; ``record`` is a statistic already
            known (`record`); the others compute.
    """

    op: str
    kind: Kind
    inputs: tuple[int, ...]
    parameters: Mapping[str, object]
    dtype: DType | None
    key: str
    source: TensorSource | None = None
    record: Mapping[str, object] | None = None

    @property
    def cost(self) -> float:
        """Nanoseconds per element to evaluate it, its inputs given."""
        if self.kind in ("load", "cached"):
            assert self.dtype is not None  # both are tensors
            return READ_COST * self.dtype.itemsize / 2
        return OPS[self.op].cost * max(1, len(self.inputs)) if self.kind == "pointwise" else 0.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where bytes of an output go: a file and the absolute offset of the tensor's first byte in it."""

    path: str
    offset: int


@dataclass(frozen=True, slots=True)
class Sink:
    """A value that leaves the program: to a place in an output file, or to the cache under its key (no place)."""

    instruction: int
    name: str
    output: str
    place: Place | None


@dataclass(frozen=True, slots=True)
class Pass:
    """One sweep over the blocks.

    Args:
        evaluate: instructions to evaluate for each block, in order; stored ones of earlier passes are not among them.
        read_back: instructions stored by an earlier pass and read in this one.
        store: instructions of this pass that later ones read back.
        statistics: instructions (of kind ``statistic``) this pass completes.
        sinks: places in `Program.sinks` written in this pass.
    """

    evaluate: tuple[int, ...]
    read_back: tuple[int, ...]
    store: tuple[int, ...]
    statistics: tuple[int, ...]
    sinks: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """Everything one task does for one group of values of the same shape."""

    shape: tuple[int, ...]
    instructions: tuple[Instruction, ...]
    sinks: tuple[Sink, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @cached_property
    def passes(self) -> tuple[Pass, ...]:
        return _passes(self)

    def reads(self) -> dict[int, list[int]]:
        """For each ``load`` and ``cached`` instruction, the passes that read it."""
        found: dict[int, list[int]] = {}
        for number, sweep in enumerate(self.passes):
            for i in sweep.evaluate:
                if self.instructions[i].kind in ("load", "cached"):
                    found.setdefault(i, []).append(number)
        return found


def _levels(instructions: Sequence[Instruction]) -> list[int]:
    """How many sweeps come before each value is known: 0 for what is read, p for a statistic of pass p."""
    levels: list[int] = []
    for instruction in instructions:
        level = max((levels[i] for i in instruction.inputs), default=0)
        levels.append(level + 1 if instruction.kind == "statistic" else level)
    return levels


def _passes(program: Program) -> tuple[Pass, ...]:
    instructions = program.instructions
    levels = _levels(instructions)
    last = max([levels[sink.instruction] + 1 for sink in program.sinks], default=0)
    last = max([last, *(levels[i] for i, it in enumerate(instructions) if it.kind == "statistic")])
    wanted: list[list[int]] = []
    for number in range(1, last + 1):
        statistics = [i for i, it in enumerate(instructions) if it.kind == "statistic" and levels[i] == number]
        ends = [sink.instruction for sink in program.sinks if levels[sink.instruction] == number - 1]
        wanted.append([*(j for i in statistics for j in instructions[i].inputs), *ends])
    stored: set[int] = set()
    made: list[Pass] = []
    for number, ends in enumerate(wanted, start=1):
        order = _evaluation_order(instructions, ends, stored)
        later = {j for other in wanted[number:] for j in _evaluation_order(instructions, other, stored)}
        store = _worth_storing(instructions, order, later, levels, number, stored)
        made.append(
            Pass(
                evaluate=tuple(i for i in order if i not in stored),
                read_back=tuple(i for i in order if i in stored),
                store=tuple(store),
                statistics=tuple(
                    i for i, it in enumerate(instructions) if it.kind == "statistic" and levels[i] == number
                ),
                sinks=tuple(k for k, sink in enumerate(program.sinks) if levels[sink.instruction] == number - 1),
            )
        )
        stored.update(store)
    return tuple(made)


def _evaluation_order(instructions: Sequence[Instruction], ends: Sequence[int], stored: set[int]) -> list[int]:
    """The tensor values needed for `ends`, each after its inputs, depth first so that few are alive at once."""
    order: dict[int, None] = {}
    waiting = [(end, False) for end in reversed(ends)]  # a stack, not calls: a chain of steps may be a thousand deep
    while waiting:
        i, inputs_are_ready = waiting.pop()
        if i in order or instructions[i].dtype is None:
            continue
        if inputs_are_ready or i in stored:
            order[i] = None
            continue
        waiting.append((i, True))
        waiting += [(j, False) for j in reversed(instructions[i].inputs)]
    return list(order)


def _worth_storing(
    instructions: Sequence[Instruction],
    order: Sequence[int],
    later: set[int],
    levels: Sequence[int],
    number: int,
    stored: set[int],
) -> list[int]:
    """Values of this pass that a value of a later pass reads, and that cost more to compute again than to keep."""
    read_later = {j for i in later if levels[i] >= number for j in instructions[i].inputs}
    costs: dict[int, float] = {}
    for i in order:
        inputs = sum(costs.get(j, 0.0) for j in instructions[i].inputs)
        costs[i] = READ_COST if i in stored else instructions[i].cost + inputs
    return [
        i
        for i in order
        if i in read_later and i not in stored and instructions[i].kind == "pointwise" and costs[i] > STORE_COST
    ]
