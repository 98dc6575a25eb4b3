"""Evaluating a program: its passes, block by block, from files to sinks.

Blocks come in rising order and every block but the last is a multiple of 65536 elements long, which is what the
statistics ask for; nothing else about a result depends on the length of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

import torch

from mergeflow.dtypes import DType
from mergeflow.execute.buffers import Workspace, torch_dtype
from mergeflow.execute.files import InputFiles
from mergeflow.execute.finite import NonFinite, first_non_finite
from mergeflow.execute.kept import KeptValues
from mergeflow.execute.sweep import Step, Sweep, Value, operand_dtype, plan_sweep
from mergeflow.graph.program import Instruction, Pass, Program, Sink
from mergeflow.methods.kernels.protocols import (
    Record,
    Statistic,
    pointwise_kernel,
    sample_size,
    statistic_kernel,
)
from mergeflow.methods.ops import OPS

SAMPLE_RUN_ELEMENTS = 1024
COMPARED_FIRST = 4096


class CachedTensor(Protocol):
    """A tensor of the cache, read by flat ranges."""

    def read_into(self, start: int, out: memoryview) -> None: ...


class Destination(Protocol):
    """Where a program's results go."""

    def write(self, sink: Sink, start_byte: int, block: memoryview) -> None: ...

    def record(self, instruction: Instruction, record: Record) -> None: ...


@dataclass
class Evaluation:
    """One program being evaluated by one thread.

    Args:
        cached: opens a tensor of the cache by key.
        moved: told the bytes read and written as they move; may raise to stop the run.
    """

    program: Program
    workspace: Workspace
    files: InputFiles
    kept: KeptValues
    cached: Callable[[str], CachedTensor]
    destination: Destination
    moved: Callable[[int, int], None]
    records: dict[int, Record] = field(default_factory=dict)
    same_as: dict[int, set[int]] = field(default_factory=dict)
    not_finite: dict[int, NonFinite] = field(default_factory=dict)
    cache_bytes_read: int = 0
    _readers: dict[int, CachedTensor] = field(default_factory=dict)

    def run(self) -> None:
        """Evaluate every pass; results are at their destination when this returns."""
        instructions = self.program.instructions
        self.records = {i: cast(Record, it.record) for i, it in enumerate(instructions) if it.record is not None}
        seen: set[int] = set()
        for sweep in self.program.passes:
            again = _SweepRun(self, sweep, frozenset(seen))
            again.run()
            seen |= {i for i in sweep.evaluate if instructions[i].kind in ("load", "cached")}

    def read(self, i: int, start: int, out: memoryview) -> None:
        """Bytes of an input instruction from element `start` on."""
        instruction = self.program.instructions[i]
        if instruction.source is not None:
            self.files.read(instruction.source, start * instruction.source.dtype.itemsize, out)
            return
        if i not in self._readers:
            self._readers[i] = self.cached(instruction.key)
        self._readers[i].read_into(start, out)
        self.cache_bytes_read += len(out)


class _SweepRun:
    """One pass over the blocks of a program."""

    def __init__(self, evaluation: Evaluation, sweep: Pass, loaded: frozenset[int]) -> None:
        self.evaluation = evaluation
        self.sweep = sweep
        self.loaded = loaded
        self.program = evaluation.program
        self.workspace = evaluation.workspace
        self.plan: Sweep = plan_sweep(self.program, sweep)
        computed = [i for i in sweep.evaluate if self.program.instructions[i].kind == "pointwise"]
        self.kernels = {i: pointwise_kernel(OPS[self.program.instructions[i].op]) for i in computed}
        self.statistics = {i: self._statistic(i) for i in sweep.statistics}

    def run(self) -> None:
        if any(statistic.needs_sample for statistic in self.statistics.values()):
            self._sample()
        pending = dict(self.statistics)
        first = True
        while first or pending:
            self._over_blocks(pending, first=first)
            for i, statistic in list(pending.items()):
                record = statistic.finish()
                if record is not None:
                    self.evaluation.records[i] = record
                    self.evaluation.destination.record(self.program.instructions[i], record)
                    del pending[i]
            self.loaded |= frozenset(self.sweep.evaluate)
            first = False

    def _over_blocks(self, pending: Mapping[int, Statistic], *, first: bool) -> None:
        size, block = self.program.size, self.workspace.block_elements
        for start in range(0, size, block):
            elements = min(block, size - start)
            asking = {i: s for i, s in pending.items() if s.wanted.start < start + elements and start < s.wanted.stop}
            if first or asking:
                self._block(start, elements, asking, sinks=first)

    def _block(self, start: int, elements: int, pending: Mapping[int, Statistic], *, sinks: bool) -> None:
        values: dict[Value, torch.Tensor] = {}
        read_before = self.evaluation.files.bytes_read
        written = 0
        for step in self.plan.steps:
            if step.kind == "sink":
                written += self._sink(step, start, values) if sinks else 0
            elif step.kind == "store":
                self._store(step, start, values)
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
        if step.kind == "read":
            return self._read(step, dtype, start, elements)
        if step.kind == "back":
            return self._read_back(step, dtype, start, elements)
        out = self.workspace.slot(step.slot, elements, dtype)
        if step.kind == "widen":
            return out.copy_(values[step.inputs[0]])
        self._compute(step, [values[value] for value in step.inputs], out, start)
        return out

    def _compute(self, step: Step, blocks: Sequence[torch.Tensor], out: torch.Tensor, start: int) -> None:
        instruction = self.program.instructions[step.number]
        records = [self.evaluation.records[i] for i in instruction.inputs if i in self.evaluation.records]
        scratch = self._scratch(step, out.numel())
        self.kernels[step.number](blocks, records, instruction.parameters, out, scratch, start)

    def _scratch(self, step: Step, elements: int) -> Callable[[int], torch.Tensor]:
        instruction = self.program.instructions[step.number]
        dtype = operand_dtype(instruction, [self.program.instructions[v.instruction] for v in step.inputs])
        return self.workspace.scratch(elements, torch_dtype(dtype.name))

    def _read(self, step: Step, dtype: torch.dtype, start: int, elements: int) -> torch.Tensor:
        nbytes = elements * dtype.itemsize
        kept = self.evaluation.kept.view(step.number, start * dtype.itemsize, nbytes)
        if kept is not None:
            if step.number not in self.loaded:
                self.evaluation.read(step.number, start, memory(kept))
            return self._on_device(kept, step.slot, dtype)
        return self._fill(step, dtype, elements, lambda out: self.evaluation.read(step.number, start, out))

    def _read_back(self, step: Step, dtype: torch.dtype, start: int, elements: int) -> torch.Tensor:
        first = start * dtype.itemsize
        kept = self.evaluation.kept.view(step.number, first, elements * dtype.itemsize)
        if kept is not None:
            return self._on_device(kept, step.slot, dtype)
        return self._fill(step, dtype, elements, lambda out: self.evaluation.kept.read(step.number, first, out))

    def _fill(self, step: Step, dtype: torch.dtype, elements: int, read: Callable[[memoryview], None]) -> torch.Tensor:
        """A block brought from a file into the step's buffer."""
        if self.workspace.device.type == "cpu":
            slot = self.workspace.slot(step.slot, elements, dtype)
            read(memory(slot))
            return slot
        host = self.workspace.raw("in", elements * dtype.itemsize)
        read(memory(host))
        return self._on_device(host, step.slot, dtype)

    def _on_device(self, host: torch.Tensor, slot: int, dtype: torch.dtype) -> torch.Tensor:
        block = host.view(dtype)
        if self.workspace.device.type == "cpu":
            return block
        return self.workspace.slot(slot, block.numel(), dtype).copy_(block)

    def _on_host(self, block: torch.Tensor) -> torch.Tensor:
        if block.device.type == "cpu":
            return block
        nbytes = block.numel() * block.dtype.itemsize
        return self.workspace.raw("out", nbytes).view(block.dtype).copy_(block)

    def _store(self, step: Step, start: int, values: Mapping[Value, torch.Tensor]) -> None:
        block = values[step.inputs[0]]
        first, nbytes = start * block.dtype.itemsize, block.numel() * block.dtype.itemsize
        kept = self.evaluation.kept.view(step.number, first, nbytes)
        if kept is not None:
            kept.view(block.dtype).copy_(block)
        else:
            self.evaluation.kept.write(step.number, first, memory(self._on_host(block)))

    def _sink(self, step: Step, start: int, values: Mapping[Value, torch.Tensor]) -> int:
        sink = self.program.sinks[step.number]
        block = self._on_host(values[step.inputs[0]])
        bad = first_non_finite(block)
        if bad is not None and step.number not in self.evaluation.not_finite:
            inherited = any(self._has_non_finite(i) for i in self._inputs_of(sink.instruction))
            self.evaluation.not_finite[step.number] = NonFinite(start + bad, inherited)
        self._compare(step.number, start, block)
        data = memory(block)
        self.evaluation.destination.write(sink, start * block.dtype.itemsize, data)
        return len(data)

    def _originals(self) -> list[int]:
        return [i for i, it in enumerate(self.program.instructions) if it.kind == "load"]

    def _inputs_of(self, i: int) -> set[int]:
        """The tensors on disk, of inputs and of the cache, that a value depends on."""
        found, waiting = {i}, [i]
        while waiting:
            inputs = set(self.program.instructions[waiting.pop()].inputs) - found
            found |= inputs
            waiting += inputs
        return {j for j in found if self.program.instructions[j].kind in ("load", "cached")}

    def _has_non_finite(self, i: int) -> bool:
        """Whether an input has a NaN or infinity, anywhere: a statistic carries it to every element of the result."""
        size, most = self.program.size, self.workspace.block_elements
        blocks = (self._original(i, start, min(most, size - start)) for start in range(0, size, most))
        return any(first_non_finite(block) is not None for block in blocks)

    def _original(self, i: int, start: int, elements: int) -> torch.Tensor:
        """An input's numbers, read again: the buffer they were in may hold another value by now."""
        dtype = self.program.instructions[i].dtype
        assert dtype is not None  # an input is a tensor
        host = self.workspace.raw("again", elements * dtype.itemsize)
        self.evaluation.read(i, start, memory(host))
        return host.view(torch_dtype(dtype.name))

    def _compare(self, sink: int, start: int, block: torch.Tensor) -> None:
        """Note which inputs an output has equalled so far; a short prefix settles it for almost every tensor."""
        if sink not in self.evaluation.same_as:
            prefix = block[:COMPARED_FIRST]
            self.evaluation.same_as[sink] = {i for i in self._originals() if self._equals(i, start, prefix)}
        candidates = self.evaluation.same_as[sink]
        candidates -= {i for i in candidates if not self._equals(i, start, block)}

    def _equals(self, i: int, start: int, block: torch.Tensor) -> bool:
        dtype = self.program.instructions[i].dtype
        if dtype is None or torch_dtype(dtype.name) != block.dtype:
            return False
        return torch.equal(self._original(i, start, block.numel()).view(torch.uint8), block.view(torch.uint8))

    def _statistic(self, i: int) -> Statistic:
        instruction = self.program.instructions[i]
        return statistic_kernel(OPS[instruction.op])(self.program.size, instruction.parameters)

    def _sample(self) -> None:
        """Show the statistics a sample spread over the tensor, gathered into one block."""
        size = self.program.size
        runs = _sample_runs(size)
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
                values[step.result] = self._gather(step, step.result.dtype, runs)
            elif step.result is not None:
                values[step.result] = self._value(step, 0, elements, values)

    def _gather(self, step: Step, dtype: DType, runs: Sequence[tuple[int, int]]) -> torch.Tensor:
        kind = torch_dtype(dtype.name)
        elements = sum(length for _, length in runs)

        def read(out: memoryview) -> None:
            done = 0
            for start, length in runs:
                part = out[done : done + length * dtype.itemsize]
                if step.kind == "read":
                    self.evaluation.read(step.number, start, part)
                else:
                    self._gather_back(step.number, start * dtype.itemsize, part)
                done += len(part)

        return self._fill(step, kind, elements, read)

    def _gather_back(self, i: int, first: int, out: memoryview) -> None:
        kept = self.evaluation.kept.view(i, first, len(out))
        if kept is None:
            self.evaluation.kept.read(i, first, out)
        else:
            out[:] = memory(kept)


def memory(block: torch.Tensor) -> memoryview:
    """The bytes of a contiguous host tensor, writable, without a copy."""
    return block.view(torch.uint8).numpy().data


def _sample_runs(size: int) -> list[tuple[int, int]]:
    """(start, length) of runs spread evenly over a tensor, as many as a statistic asks for."""
    runs = sample_size(size) // SAMPLE_RUN_ELEMENTS
    if runs < 2:
        return []
    stride = (size - SAMPLE_RUN_ELEMENTS) // (runs - 1)
    return [(k * stride, SAMPLE_RUN_ELEMENTS) for k in range(runs)]
