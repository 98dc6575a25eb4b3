"""A program: what one task evaluates, block by block, over tensors of one shape.

    pass 1   load a, load b            -> gram(a, b)                  statistics of level 1
    pass 2   load a, load b, gram      -> slerp -> (kept) -> gram ... statistics of level 2
    pass 3   ...                       -> cast  -> sink               bytes of the output

A statistic is known only when its whole input has been seen, so a value that depends on it waits for the next
pass. Pass p computes the statistics of level p and writes the sinks whose values are ready by then. A block of
everything else needs only the same block of its inputs; if an operation is row-wise, blocks are whole rows.

The exception are operations on whole tensors. Such a value is of the level of a statistic: pass p keeps its inputs, it
is computed at the end of the pass, and later passes read it back.

A value that a later pass reads again is *stored* when computing it again would cost more than reading it back; a
chain of n steps then costs n, not n squared. Inputs read in several passes are *retained*. Where both lie (memory or
a scratch file) is decided by `graph.memory`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple

from mergeflow.dtypes import DType
from mergeflow.methods.ops import OPS
from mergeflow.methods.schema import OpKind
from mergeflow.models.records import TensorSource

Kind = Literal["load", "cached", "record"] | OpKind

# What is read, from files or from the cache, by ranges of elements.
READ = ("load", "cached", "view")

# What is known of a block when the block is read, and what only when all of them were.
_IN_BLOCKS = ("pointwise", "rowwise")
_ENDS_A_PASS = ("statistic", "whole")

# Nanoseconds per element on one core, measured (docs/performance.md): reading two bytes from the page cache, and
# writing then reading four bytes of a stored value.
READ_COST = 0.5
STORE_COST = 3.0


@dataclass(frozen=True, slots=True)
class Reading:
    """How a tensor is read: from a file (`source`), from the cache under `key`, or as a view of `parts`."""

    key: str
    dtype: DType
    shape: tuple[int, ...]
    source: TensorSource | None = None
    op: str = ""
    parameters: Mapping[str, object] = field(default_factory=dict)
    parts: tuple[Reading, ...] = ()

    def sources(self) -> Iterator[TensorSource]:
        """The tensors in files that it is read from."""
        if self.source is not None:
            yield self.source
        for part in self.parts:
            yield from part.sources()


@dataclass(frozen=True, slots=True)
class Instruction:
    """One value of a program. `inputs` are places of earlier instructions.

    Args:
        kind: ``load`` reads `source`; ``cached`` reads the cached tensor `key`; ``view`` reads `reading`; ``record`` is
            a statistic already known (`record`); the others compute.
        keep: whether a statistic, or a part of a view, may be written to the cache.
    """

    op: str
    kind: Kind
    inputs: tuple[int, ...]
    parameters: Mapping[str, object]
    dtype: DType | None
    key: str
    source: TensorSource | None = None
    record: Mapping[str, object] | None = None
    keep: bool = True
    reading: Reading | None = None

    def sources(self) -> Iterator[TensorSource]:
        """The tensors in files that it is read from."""
        if self.source is not None:
            yield self.source
        elif self.reading is not None:
            yield from self.reading.sources()


@dataclass(frozen=True, slots=True)
class Place:
    """Where bytes of an output go: a file and the absolute offset of the tensor's first byte in it."""

    path: str
    offset: int


@dataclass(frozen=True, slots=True)
class Sink:
    """A value that leaves the program: to a place in an output file, or to the cache under its key (no place).

    `is_part` is of one that another task of the run reads from there: it must arrive.
    """

    instruction: int
    name: str
    output: str
    place: Place | None
    is_part: bool = False


@dataclass(frozen=True, slots=True)
class Pass:
    """One sweep over the blocks.

    Args:
        evaluate: instructions to evaluate for each block, in order; stored ones of earlier passes are not among them.
        read_back: instructions stored by an earlier pass and read in this one.
        store: instructions of this pass that later ones read back, or that `whole` ones of this pass are made of.
        statistics: instructions (of kind ``statistic``) this pass completes.
        sinks: places in `Program.sinks` written in this pass.
        whole: instructions of kind ``whole``, computed when all blocks are done; later passes read them back.
    """

    evaluate: tuple[int, ...]
    read_back: tuple[int, ...]
    store: tuple[int, ...]
    statistics: tuple[int, ...]
    sinks: tuple[int, ...]
    whole: tuple[int, ...] = ()


class Form(NamedTuple):
    """An instruction without its tensor: what its place in a pass depends on."""

    op: str
    kind: Kind
    inputs: tuple[int, ...]
    dtype: DType | None


@dataclass(frozen=True, slots=True)
class Outline:
    """A program without its tensors: the form of each instruction, and the instruction of each sink."""

    forms: tuple[Form, ...]
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
    def row(self) -> int | None:
        """Elements of a row when an operation needs whole rows, so that blocks are multiples of it; else None."""
        if not any(it.kind == "rowwise" for it in self.instructions):
            return None
        return max(1, self.shape[-1]) if self.shape else 1

    @cached_property
    def outline(self) -> Outline:
        """What its passes depend on. The tensors of a model have a handful of outlines between them."""
        forms = tuple(Form(it.op, it.kind, it.inputs, it.dtype) for it in self.instructions)
        return Outline(forms, tuple(sink.instruction for sink in self.sinks))

    @property
    def passes(self) -> tuple[Pass, ...]:
        return _passes(self.outline)

    def reads(self) -> dict[int, list[int]]:
        """For each instruction that is read, the passes that read it block by block."""
        found: dict[int, list[int]] = {}
        for number, sweep in enumerate(self.passes):
            for i in sweep.evaluate:
                if self.instructions[i].kind in READ:
                    found.setdefault(i, []).append(number)
        return found


@lru_cache(maxsize=1024)
def _passes(outline: Outline) -> tuple[Pass, ...]:
    forms, sinks = outline.forms, outline.sinks
    levels = _levels(outline)
    statistics = [i for i, form in enumerate(forms) if form.kind == "statistic"]
    wholes = [i for i, form in enumerate(forms) if form.kind == "whole"]
    last = max([levels[i] for i in (*statistics, *wholes)] + [levels[i] + 1 for i in sinks], default=0)
    wanted: list[list[int]] = []  # the tensor values each pass must have
    needed: list[set[int]] = []  # those that must be whole when it ends
    for number in range(1, last + 1):
        inputs = [j for i in statistics if levels[i] == number for j in forms[i].inputs]
        wanted.append([*inputs, *(i for i in sinks if levels[i] == number - 1)])
        needed.append({j for i in wholes if levels[i] == number for j in to_gather(forms, i)})
    last_read = _last_read(outline, levels, [[*ends, *more] for ends, more in zip(wanted, needed, strict=True)])
    stored: set[int] = set()
    made: list[Pass] = []
    for number, ends in enumerate(wanted, start=1):
        to_keep = needed[number - 1] - stored
        order = _evaluation_order(outline, [*ends, *sorted(to_keep)], stored)
        store = _worth_storing(outline, order, last_read, number, stored, to_keep)
        made.append(
            Pass(
                evaluate=tuple(i for i in order if i not in stored),
                read_back=tuple(i for i in order if i in stored),
                store=tuple(store),
                statistics=tuple(i for i in statistics if levels[i] == number),
                sinks=tuple(k for k, i in enumerate(sinks) if levels[i] == number - 1),
                whole=tuple(i for i in wholes if levels[i] == number),
            )
        )
        stored.update(store, made[-1].whole)
    return tuple(made)


def to_gather(forms: Sequence[Form | Instruction], whole: int) -> list[int]:
    """The inputs of a ``whole`` instruction that must be kept for it; the others lie whole in a file."""
    tensors = [j for j in forms[whole].inputs if forms[j].dtype is not None]
    return [j for j in tensors if forms[j].kind not in READ]


def _levels(outline: Outline) -> list[int]:
    """How many sweeps come before each value is known: 0 for what is read, p for a statistic, or a whole, of pass p."""
    levels: list[int] = []
    for form in outline.forms:
        level = max((levels[i] for i in form.inputs), default=0)
        levels.append(level + 1 if form.kind in _ENDS_A_PASS else level)
    return levels


def _last_read(outline: Outline, levels: Sequence[int], wanted: Sequence[Sequence[int]]) -> list[int]:
    """For each value, the last pass p such that a pass after p reads it as it is (0: none does).

    A value is read by a pass that wants it, and by the operations that cannot be evaluated before that pass: those of
    level p or more.
    """
    forms = outline.forms
    reach = [0] * len(forms)
    last_pass = [0] * len(forms)  # in which a value, or something made of it, is wanted
    for number, ends in enumerate(wanted, start=1):
        for i in ends:
            last_pass[i] = number
            reach[i] = number - 1
    for i in reversed(range(len(forms))):
        if forms[i].dtype is None or forms[i].kind == "whole":
            continue  # what these are made of is wanted by the pass that makes them
        for j in forms[i].inputs:
            last_pass[j] = max(last_pass[j], last_pass[i])
            reach[j] = max(reach[j], min(levels[i], last_pass[i] - 1))
    return reach


def _evaluation_order(outline: Outline, ends: Sequence[int], stored: set[int]) -> list[int]:
    """The tensor values needed for `ends`, each after its inputs, depth first so that few are alive at once."""
    order: dict[int, None] = {}
    waiting = [(end, False) for end in reversed(ends)]  # a stack, not calls: a chain of steps may be a thousand deep
    while waiting:
        i, inputs_are_ready = waiting.pop()
        form = outline.forms[i]
        if i in order or form.dtype is None:
            continue
        if inputs_are_ready or i in stored:
            order[i] = None
            continue
        waiting.append((i, True))
        waiting += [(j, False) for j in reversed(form.inputs)]
    return list(order)


def _worth_storing(
    outline: Outline, order: Sequence[int], last_read: Sequence[int], number: int, stored: set[int], needed: set[int]
) -> list[int]:
    """Values of this pass that are `needed` whole, or that a later pass reads and that cost more to make again."""
    costs: dict[int, float] = {}
    chosen: list[int] = []
    for i in order:
        form = outline.forms[i]
        above = sum(costs.get(j, 0.0) for j in form.inputs)
        costs[i] = READ_COST if i in stored else _cost(form) + above
        if form.kind not in (*_IN_BLOCKS, "view") or i in stored:
            continue
        if i in needed or (last_read[i] >= number and costs[i] > STORE_COST):
            chosen.append(i)
    return chosen


def _cost(form: Form) -> float:
    """Nanoseconds per element to evaluate an operation, its inputs given."""
    if form.kind in ("load", "cached"):
        return READ_COST * (form.dtype.itemsize if form.dtype else 0) / 2
    if form.kind == "view":
        return OPS[form.op].cost
    return OPS[form.op].cost * max(1, len(form.inputs)) if form.kind in _IN_BLOCKS else 0.0
