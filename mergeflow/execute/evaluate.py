"""Evaluating a program: its passes, block by block, from files to sinks.

Blocks come in rising order. Where an operation needs whole rows they are whole rows; nothing about a result depends on
their length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from mergeflow.execute.blocks import Blocks
from mergeflow.execute.buffers import Workspace, memory, torch_dtype
from mergeflow.execute.checking import OutputChecks
from mergeflow.execute.destination import Destination
from mergeflow.execute.finite import find_non_finite
from mergeflow.execute.inputs import CachedTensor, InputBytes, Inputs
from mergeflow.execute.kept import KeptValues
from mergeflow.execute.passes import known_records, visits
from mergeflow.execute.sampling import sample_runs
from mergeflow.execute.sweep import Step, Sweep, Value, operand_dtype, plan_sweep
from mergeflow.execute.whole import WholeValues
from mergeflow.graph.memory import block_length
from mergeflow.graph.program import READ, Pass, Program
from mergeflow.methods.kernels.protocols import (
    PointwiseKernel,
    Record,
    RowwiseKernel,
    Scratch,
    Statistic,
    pointwise_kernel,
    rowwise_kernel,
    statistic_kernel,
)
from mergeflow.methods.ops import OPS


@dataclass
class Evaluation:
    """One program being evaluated by one thread.

    Args:
        cached: opens a tensor of the cache by key.
        moved: told the bytes read and written as they move; may raise to stop the run.
    """

    program: Program
    workspace: Workspace
    files: InputBytes
    kept: KeptValues[torch.Tensor]
    cached: Callable[[str], CachedTensor]
    destination: Destination
    moved: Callable[[int, int], None]
    records: dict[int, Record] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.inputs = Inputs(self.program, self.files, self.cached)
        self.blocks = Blocks(self.workspace, self.kept, self.inputs.read)
        self.wholes = WholeValues(self.program, self.workspace, self.kept, self.inputs.read)
        self.checks = OutputChecks(
            self.program,
            self.inputs.read,
            lambda nbytes: memory(self.workspace.raw("again", nbytes)),
            self.workspace.block_elements,
            find_non_finite,
        )

    def run(self) -> None:
        """Evaluate every pass; results are at their destination when this returns."""
        instructions = self.program.instructions
        self.records = known_records(self.program)
        seen: set[int] = set()
        for sweep in self.program.passes:
            again = _SweepRun(self, sweep, frozenset(seen))
            again.run()
            seen |= {i for i in sweep.evaluate if instructions[i].kind in READ}


class _SweepRun:
    """One pass over the blocks of a program."""

    def __init__(self, evaluation: Evaluation, sweep: Pass, loaded: frozenset[int]) -> None:
        self.evaluation = evaluation
        self.sweep = sweep
        self.loaded = loaded
        self.program = evaluation.program
        self.workspace = evaluation.workspace
        self.plan: Sweep = plan_sweep(self.program, sweep)
        self.length = block_length(self.program, self.workspace.block_elements)
        computed = [i for i in sweep.evaluate if self.program.instructions[i].kind in ("pointwise", "rowwise")]
        self.kernels = {i: self._kernel(i) for i in computed}
        self.statistics = {i: self._statistic(i) for i in sweep.statistics}

    def run(self) -> None:
        if any(statistic.needs_sample for statistic in self.statistics.values()):
            self._sample()
        pending = dict(self.statistics)
        first = True
        while first or pending:
            for start, elements, asking in visits(self.program.size, self.length, pending, first=first):
                self._block(start, elements, asking, sinks=first)
            for i, statistic in list(pending.items()):
                record = statistic.finish()
                if record is not None:
                    self.evaluation.records[i] = record
                    self.evaluation.destination.record(self.program.instructions[i], record)
                    del pending[i]
            self.loaded |= frozenset(self.sweep.evaluate)
            first = False
        for i in self.sweep.whole:
            self._whole(i)

    def _whole(self, i: int) -> None:
        read_before = self.evaluation.files.bytes_read
        self.evaluation.wholes.compute(i, self.evaluation.records)
        self.evaluation.moved(self.evaluation.files.bytes_read - read_before, 0)

    def _block(self, start: int, elements: int, pending: Mapping[int, Statistic], *, sinks: bool) -> None:
        values: dict[Value, torch.Tensor] = {}
        read_before = self.evaluation.files.bytes_read
        written = 0
        for step in self.plan.steps:
            if step.kind == "sink":
                written += self._sink(step, start, values) if sinks else 0
            elif step.kind == "store":
                self.evaluation.blocks.store(step.number, start, values[step.inputs[0]])
            elif step.kind == "update":
                if step.number in pending:
                    pending[step.number].update(
                        start, [values[value] for value in step.inputs], self._scratch(step, elements)
                    )
            elif step.result is not None:
                values[step.result] = self._value(step, start, elements, values)
        self.evaluation.moved(self.evaluation.files.bytes_read - read_before, written)

    def _value(self, step: Step, start: int, elements: int, values: Mapping[Value, torch.Tensor]) -> torch.Tensor:
        assert step.result is not None  # the caller asks for steps that make a value
        dtype = torch_dtype(step.result.dtype.name)
        blocks = self.evaluation.blocks
        if step.kind == "read":
            return blocks.read(step, dtype, start, elements, loaded=step.number in self.loaded)
        if step.kind == "back":
            return blocks.read_back(step, dtype, start, elements)
        out = self.workspace.slot(step.slot, elements, dtype)
        if step.kind == "widen":
            return out.copy_(values[step.inputs[0]])
        self._compute(step, [values[value] for value in step.inputs], out, start)
        return out

    def _compute(self, step: Step, blocks: Sequence[torch.Tensor], out: torch.Tensor, start: int) -> None:
        instruction = self.program.instructions[step.number]
        records = [self.evaluation.records[i] for i in instruction.inputs if i in self.evaluation.records]
        scratch = self._scratch(step, out.numel())
        if instruction.kind == "rowwise":
            blocks, out, scratch = [self._rows(block) for block in blocks], self._rows(out), self._rows_of(scratch)
        self.kernels[step.number](blocks, records, instruction.parameters, out, scratch, start)

    def _rows(self, block: torch.Tensor) -> torch.Tensor:
        assert self.program.row is not None  # the program has a row-wise operation
        return block.view(-1, self.program.row)

    def _rows_of(self, scratch: Scratch) -> Scratch:
        return lambda place: self._rows(scratch(place))

    def _scratch(self, step: Step, elements: int) -> Scratch:
        instruction = self.program.instructions[step.number]
        dtype = operand_dtype(instruction, [self.program.instructions[v.instruction] for v in step.inputs])
        return self.workspace.scratch(elements, torch_dtype(dtype.name))

    def _sink(self, step: Step, start: int, values: Mapping[Value, torch.Tensor]) -> int:
        block = self.evaluation.blocks.on_host(values[step.inputs[0]])
        data = memory(block)
        self.evaluation.checks.look(step.number, start, data)
        self.evaluation.destination.write(self.program.sinks[step.number], start * block.dtype.itemsize, data)
        return len(data)

    def _kernel(self, i: int) -> PointwiseKernel | RowwiseKernel:
        op = OPS[self.program.instructions[i].op]
        return rowwise_kernel(op) if op.kind == "rowwise" else pointwise_kernel(op)

    def _statistic(self, i: int) -> Statistic:
        instruction = self.program.instructions[i]
        return statistic_kernel(OPS[instruction.op])(self.program.size, instruction.parameters)

    def _sample(self) -> None:
        """Show the statistics a sample spread over the tensor, gathered into one block."""
        runs = sample_runs(self.program.size, self.program.row, self.length)
        if not runs:
            return
        values: dict[Value, torch.Tensor] = {}
        elements = sum(length for _, length in runs)
        for step in self.plan.steps:
            if step.kind in ("sink", "store"):
                continue
            if step.kind == "update":
                if self.statistics[step.number].needs_sample:
                    self.statistics[step.number].sample([values[value] for value in step.inputs])
            elif step.kind in ("read", "back") and step.result is not None:
                values[step.result] = self.evaluation.blocks.gather(step, step.result.dtype, runs)
            elif step.result is not None:
                values[step.result] = self._value(step, 0, elements, values)
