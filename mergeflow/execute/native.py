"""Evaluating a program on the CPU with the native library: one call per block, and no torch.

    one call:  inputs ── read, part by part ── pointwise steps, tile by tile ── sums
    then:      blocks ── other statistics, checks, sinks

The same passes and steps as `evaluate`, and the same bytes. What differs is where values lie (`native_call`). Inputs
are not retained between passes: reading them again, from the page cache, costs less than the memory to keep them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mergeflow.dtypes import DType
from mergeflow.execute.checking import OutputChecks
from mergeflow.execute.destination import Destination
from mergeflow.execute.inputs import CachedTensor, InputBytes, Inputs
from mergeflow.execute.kept import KeptValues
from mergeflow.execute.native_buffers import NativeWorkspace, address, copy
from mergeflow.execute.native_call import Call, Memory, PlainRead, narrow_statistics
from mergeflow.execute.passes import known_records, visits
from mergeflow.execute.sampling import sample_runs
from mergeflow.execute.sweep import Step, Value, plan_sweep
from mergeflow.graph.memory import block_length
from mergeflow.graph.nodes import Node
from mergeflow.graph.program import READ, Instruction, Pass, Program
from mergeflow.methods.kernels.protocols import Record
from mergeflow.methods.native import library as native
from mergeflow.methods.native.operations import DTYPES, NATIVE
from mergeflow.methods.native.statistics import MOST_VECTORS, STATISTICS, SUMS, Block, NativeStatistic

# Operands of one step: MOST_OPERANDS of blocks.c.
MOST_OPERANDS = 64

# How much the library reads at a time: two or three inputs of this size fit into the second cache. Where magnitudes are
# summed lane by lane: the more rows of lanes a part has, the less often the lanes' totals are fetched.
PART_ELEMENTS = 1 << 17
TALL_PART_ELEMENTS = 1 << 19

# What leaves the library's call, and is looked at again here, should fit into the third; what is only written to a file
# need not.
BLOCK_ELEMENTS = 1 << 18
LONG_BLOCK_ELEMENTS = 1 << 20


def is_native(program: Program) -> bool:
    """Whether the library is there and has all that a program needs; the answer cannot show in any result."""
    return (program.row or 0) <= native.MOST_TILE and has_kernels(program.instructions)


def has_kernels(values: Sequence[Instruction | Node]) -> bool:
    """Whether the library is there and has all that these values need; `inputs` are places in the sequence."""
    parts = {i for value in values if value.kind == "view" for i in value.inputs}
    computed_with = {i for value in values if value.kind != "view" for i in value.inputs}
    only_read = parts - computed_with  # by a view, whatever their format
    return native.library() is not None and all(
        i in only_read or _is_native(values, value) for i, value in enumerate(values)
    )


def _is_native(values: Sequence[Instruction | Node], value: Instruction | Node) -> bool:
    inputs = [values[i] for i in value.inputs]
    dtypes = [it.dtype.name for it in (*inputs, value) if it.dtype is not None]
    if value.kind == "record":
        return True
    if value.kind in READ:
        # Bytes that only pass through may be of any dtype that has no NaN to look for.
        return value.dtype is not None and (value.dtype.name in DTYPES or not value.dtype.is_float)
    if any(name not in DTYPES for name in dtypes) or len(inputs) > MOST_OPERANDS:
        return False
    if value.kind == "statistic":
        return (value.op in SUMS or value.op in STATISTICS) and len(inputs) <= MOST_VECTORS
    # To divide by the probability of its place, an entry's own place must be found: a sort does that as fast.
    return value.op in NATIVE and not value.parameters.get("divide", False)


def find_non_finite(block: memoryview, dtype: DType) -> int | None:
    """Index of the first NaN or infinity of numbers in memory; None when there is none, or they are no floats."""
    if not dtype.is_float or len(block) == 0:
        return None
    found = native.loaded().mergeflow_first_non_finite(address(block), DTYPES[dtype.name], len(block) // dtype.itemsize)
    return found if found >= 0 else None


@dataclass
class NativeEvaluation:
    """One program being evaluated by one thread; as `evaluate.Evaluation`."""

    program: Program
    workspace: NativeWorkspace
    files: InputBytes
    kept: KeptValues[memoryview]
    cached: Callable[[str], CachedTensor]
    destination: Destination
    moved: Callable[[int, int], None]
    records: dict[int, Record] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.inputs = Inputs(self.program, self.files, self.cached)
        self.checks = OutputChecks(
            self.program,
            self.inputs.read,
            lambda nbytes: self.workspace.block("again", 0, nbytes),
            self.workspace.block_elements,
            find_non_finite,
        )

    def run(self) -> None:
        """Evaluate every pass; results are at their destination when this returns."""
        self.records = known_records(self.program)
        for sweep in self.program.passes:
            _SweepRun(self, sweep).run()


class _SweepRun:
    """One pass over the blocks of a program."""

    def __init__(self, evaluation: NativeEvaluation, sweep: Pass) -> None:
        self.evaluation = evaluation
        self.program = evaluation.program
        steps = narrow_statistics(plan_sweep(self.program, sweep).steps)
        self.reads = [step for step in steps if step.kind in ("read", "back")]
        self.stores = [step for step in steps if step.kind == "store"]
        self.sinks = [step for step in steps if step.kind == "sink"]
        updates = [step for step in steps if step.kind == "update"]
        self.updates = [step for step in updates if self._op(step) in STATISTICS]
        summed = [step for step in updates if self._op(step) in SUMS]
        self.sums = {step.number: SUMS[self._op(step)](self.program.size, len(step.inputs)) for step in summed}
        self.statistics = {step.number: self._statistic(step.number) for step in self.updates}
        multiplied = [step for step in summed if self.sums[step.number].products]
        magnitudes = [step for step in summed if not self.sums[step.number].products]

        self.plain = self._plain_reads()
        self.length, part = self._lengths(is_tall=bool(magnitudes))
        self.memory = self._make_room([value for step in multiplied for value in step.inputs], part)
        self.call = Call(
            self.program.instructions,
            [step for step in steps if step.kind in ("widen", "compute") or step in magnitudes],
            self.plain,
            [(self.sums[step.number], step.inputs) for step in multiplied],
            self.sums,
            self.memory,
            evaluation.workspace,
            evaluation.records,
        )

    def run(self) -> None:
        if any(statistic.needs_sample for statistic in self.statistics.values()):
            self._sample()
        self._visit(self.statistics, first=True)
        for i, sums in self.sums.items():
            self._record(i, sums.finish())
        pending = self._still_pending(self.statistics)
        while pending:
            self._visit(pending, first=False)
            pending = self._still_pending(pending)

    def _still_pending(self, statistics: Mapping[int, NativeStatistic]) -> dict[int, NativeStatistic]:
        pending = {}
        for i, statistic in statistics.items():
            record = statistic.finish()
            if record is None:
                pending[i] = statistic
            else:
                self._record(i, record)
        return pending

    def _record(self, i: int, record: Record) -> None:
        self.evaluation.records[i] = record
        self.evaluation.destination.record(self.program.instructions[i], record)

    def _op(self, step: Step) -> str:
        return self.program.instructions[step.number].op

    def _statistic(self, i: int) -> NativeStatistic:
        instruction = self.program.instructions[i]
        return STATISTICS[instruction.op](self.program.size, instruction.parameters)

    def _plain_reads(self) -> list[PlainRead]:
        """The reads, if the library can do them all; else none."""
        found = []
        for step in self.reads:
            source = self.program.instructions[step.number].source if step.kind == "read" else None
            place = self.evaluation.files.plain(source) if source is not None else None
            if place is None or step.result is None:
                return []
            found.append(PlainRead(step.result, *place))
        return found

    def _lengths(self, *, is_tall: bool) -> tuple[int, int]:
        """Elements of a block, and of a part of it: many rows of lanes, if it `is_tall`."""
        short = min(self.evaluation.workspace.block_elements, BLOCK_ELEMENTS)
        if not self.plain:
            return self._in_rows(short), self._in_rows(short)
        is_long = not self.stores and not self.updates and short == BLOCK_ELEMENTS
        length = LONG_BLOCK_ELEMENTS if is_long else short
        return self._in_rows(length), self._in_rows(min(length, TALL_PART_ELEMENTS if is_tall else PART_ELEMENTS))

    def _in_rows(self, elements: int) -> int:
        return block_length(self.program, elements)

    def _make_room(self, summed: Sequence[Value], part: int) -> Memory:
        """Buffers for the values that meet a file or a statistic."""
        workspace, size = self.evaluation.workspace, max(self.program.size, 1)
        leaving = dict.fromkeys(value for step in (*self.stores, *self.updates, *self.sinks) for value in step.inputs)
        read = [step.result for step in self.reads if step.result is not None]
        staying = dict.fromkeys(value for value in (*read, *summed) if value not in leaving)
        blocks = {
            value: workspace.block("block", number, min(self.length, size) * value.dtype.itemsize)
            for number, value in enumerate(leaving)
        }
        parts = {
            value: workspace.block("part", number, min(part, size) * value.dtype.itemsize)
            for number, value in enumerate(staying)
        }
        return Memory(blocks, parts, part, self.program.row or native.TILE)

    def _visit(self, pending: Mapping[int, NativeStatistic], *, first: bool) -> None:
        for start, elements, asking in visits(self.program.size, self.length, pending, first=first):
            self._block(start, elements, asking, first=first)

    def _block(self, start: int, elements: int, asking: Mapping[int, NativeStatistic], *, first: bool) -> None:
        read_before = self.evaluation.files.bytes_read
        if self.plain:
            self.evaluation.files.bytes_read += sum(elements * read.value.dtype.itemsize for read in self.plain)
        else:
            for step in self.reads:
                self._read(step, start, self._result(step, elements))
        self.call.run(elements, start, reads=True, sums=first)
        for step in self.stores:
            (value,) = step.inputs
            self._store(step.number, start * value.dtype.itemsize, self.memory.bytes_of(value, elements))
        for step in self.updates:
            if step.number in asking:
                asking[step.number].update(start, self._numbers(step, elements))
        written = sum(self._sink(step, start, elements) for step in self.sinks) if first else 0
        self.evaluation.moved(self.evaluation.files.bytes_read - read_before, written)

    def _result(self, step: Step, elements: int) -> memoryview:
        assert step.result is not None  # a read has a result
        return self.memory.bytes_of(step.result, elements)

    def _numbers(self, step: Step, elements: int) -> list[Block]:
        buffers = [self.memory.bytes_of(value, elements) for value in step.inputs]
        dtypes = [DTYPES[value.dtype.name] for value in step.inputs]
        return [Block(address(buffer), dtype, elements) for buffer, dtype in zip(buffers, dtypes, strict=True)]

    def _read(self, step: Step, start: int, out: memoryview) -> None:
        if step.kind == "read":
            self.evaluation.inputs.read(step.number, start, out)
            return
        assert step.result is not None  # a read has a result
        first = start * step.result.dtype.itemsize
        kept = self.evaluation.kept.view(step.number, first, len(out))
        if kept is None:
            self.evaluation.kept.read(step.number, first, out)
        else:
            copy(kept, out)

    def _store(self, instruction: int, first: int, block: memoryview) -> None:
        kept = self.evaluation.kept.view(instruction, first, len(block))
        if kept is None:
            self.evaluation.kept.write(instruction, first, block)
        else:
            copy(block, kept)

    def _sink(self, step: Step, start: int, elements: int) -> int:
        (value,) = step.inputs
        block = self.memory.bytes_of(value, elements)
        self.evaluation.checks.look(step.number, start, block)
        self.evaluation.destination.write(self.program.sinks[step.number], start * value.dtype.itemsize, block)
        return len(block)

    def _sample(self) -> None:
        """Show the statistics a sample spread over the tensor, gathered into one block."""
        runs = sample_runs(self.program.size, self.program.row, self.memory.part_elements)
        if not runs:
            return
        elements = sum(length for _, length in runs)
        for step in self.reads:
            out = self._result(step, elements)
            itemsize, done = len(out) // elements, 0
            for start, length in runs:
                self._read(step, start, out[done : done + length * itemsize])
                done += length * itemsize
        self.call.run(elements, 0, reads=False, sums=False)
        for step in self.updates:
            if self.statistics[step.number].needs_sample:
                self.statistics[step.number].sample(self._numbers(step, elements))
