"""One pass of a program as a list of steps over numbered buffers: decided once, then run for every block.

    read 0 -> a      widen a -> A      read 1 -> b      widen b -> B      compute task_vector(A, B) -> d
    update kth_magnitude(d)            ...              compute cast(r) -> o                     sink o

A value has its own dtype on disk and is widened (exactly) to the dtype its reader computes in. A buffer is free
again after its value's last reader, so that few buffers are alive and they stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from mergeflow.dtypes import DType, compute_dtype
from mergeflow.graph.program import READ, Form, Instruction, Outline, Pass, Program

StepKind = Literal["read", "back", "widen", "compute", "store", "update", "sink"]


@dataclass(frozen=True, slots=True)
class Value:
    """A value of the block: an instruction's result, in its own dtype or widened to another."""

    instruction: int
    dtype: DType


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do for each block. `slot` is the buffer its result goes to (-1: it makes none).

    `number` is the instruction it is about (for ``sink`` its place in `Program.sinks`).
    """

    kind: StepKind
    number: int
    slot: int
    result: Value | None
    inputs: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Sweep:
    """The steps of one pass, and how many buffers they use."""

    steps: tuple[Step, ...]
    slots: int


def plan_sweep(program: Program, sweep: Pass) -> Sweep:
    """The steps of a pass, with a buffer for each value."""
    return _plan(program.outline, sweep)


@lru_cache(maxsize=1024)
def _plan(outline: Outline, sweep: Pass) -> Sweep:
    return _assign_slots(_steps(outline, sweep))


@dataclass(frozen=True, slots=True)
class _Draft:
    kind: StepKind
    number: int
    result: Value | None
    inputs: tuple[Value, ...]


def operand_dtype(instruction: Form | Instruction, inputs: Sequence[Form | Instruction]) -> DType:
    """The dtype an instruction reads its tensors in: the one it computes in, float64 or float32."""
    if instruction.dtype is not None and instruction.op != "cast":
        return instruction.dtype
    wide = {compute_dtype(it.dtype) for it in inputs if it.dtype is not None}
    return max(wide, key=lambda dtype: dtype.itemsize)


def _steps(outline: Outline, sweep: Pass) -> list[_Draft]:
    instructions = outline.forms
    drafts: list[_Draft] = []
    ready: set[Value] = set()
    waiting = list(sweep.statistics)
    sinks = {k: outline.sinks[k] for k in sweep.sinks}

    def operands(i: int) -> tuple[Value, ...]:
        tensors = [j for j in instructions[i].inputs if instructions[j].dtype is not None]
        dtype = operand_dtype(instructions[i], [instructions[j] for j in tensors])
        return tuple(widened(j, dtype) for j in tensors)

    def widened(j: int, dtype: DType) -> Value:
        own, wide = _own(instructions, j), Value(j, dtype)
        if wide not in ready:
            drafts.append(_Draft("widen", j, wide, (own,)))
            ready.add(wide)
        return wide

    for i in (*sweep.read_back, *sweep.evaluate):
        own = _own(instructions, i)
        if i in sweep.read_back:
            drafts.append(_Draft("back", i, own, ()))
        elif instructions[i].kind in READ:
            drafts.append(_Draft("read", i, own, ()))
        else:
            drafts.append(_Draft("compute", i, own, operands(i)))
        ready.add(own)
        if i in sweep.store:
            drafts.append(_Draft("store", i, None, (own,)))
        drafts += [_Draft("sink", k, None, (own,)) for k, at in sinks.items() if at == i]
        for s in [s for s in waiting if _all_ready(instructions, s, ready)]:
            waiting.remove(s)
            inputs = operands(s)
            drafts.append(_Draft("update", s, None, inputs))
    return drafts


def _own(instructions: Sequence[Form], i: int) -> Value:
    dtype = instructions[i].dtype
    assert dtype is not None  # statistics are not values of a block
    return Value(i, dtype)


def _all_ready(instructions: Sequence[Form], statistic: int, ready: set[Value]) -> bool:
    tensors = [j for j in instructions[statistic].inputs if instructions[j].dtype is not None]
    return all(_own(instructions, j) in ready for j in tensors)


def _assign_slots(drafts: Sequence[_Draft]) -> Sweep:
    last_use = {value: at for at, draft in enumerate(drafts) for value in (*draft.inputs, draft.result) if value}
    slots: dict[Value, int] = {}
    free: list[int] = []
    used = 0
    steps: list[Step] = []
    for at, draft in enumerate(drafts):
        slot = -1
        if draft.result is not None:
            slot = free.pop() if free else used
            used = max(used, slot + 1)
            slots[draft.result] = slot
        steps.append(Step(draft.kind, draft.number, slot, draft.result, draft.inputs))
        done = dict.fromkeys(value for value in (*draft.inputs, draft.result) if value and last_use[value] == at)
        free += [slots[value] for value in done]
    return Sweep(tuple(steps), used)
