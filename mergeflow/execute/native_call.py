"""One pass over a program as the native library takes it: structures made once, then one call per block.

Where a value lies decides how its operand advances (`struct operand`):

    a tile    what is only computed with: a buffer that never leaves the processor's first cache
    a part    what is read, or multiplied for a Gram matrix: a buffer that stays in the second cache
    a block   what leaves the call: sinks, stored values, and what other statistics are taken of
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mergeflow.errors import RunError
from mergeflow.execute.files import became_shorter
from mergeflow.execute.native_buffers import TILE_SKEW, NativeWorkspace, address
from mergeflow.execute.sweep import Step, Value
from mergeflow.graph.program import Instruction
from mergeflow.methods.kernels.protocols import Record
from mergeflow.methods.native import library as native
from mergeflow.methods.native.operations import DTYPES, MAGNITUDES, NATIVE, WIDEN, Encoded
from mergeflow.methods.native.statistics import LaneSums


@dataclass(frozen=True, slots=True)
class Memory:
    """Where the values of a pass lie that have more than a tile.

    Args:
        blocks: buffers of values that have one as long as a block.
        parts: buffers of values that have one as long as a part.
        part_elements: elements of a part.
        tile_elements: elements of a tile: a row, where an operation needs whole rows.
    """

    blocks: Mapping[Value, memoryview]
    parts: Mapping[Value, memoryview]
    part_elements: int
    tile_elements: int

    def bytes_of(self, value: Value, elements: int) -> memoryview:
        """The first elements of a value's buffer."""
        buffer = self.blocks.get(value) or self.parts[value]
        return buffer[: elements * value.dtype.itemsize]


@dataclass(frozen=True, slots=True)
class PlainRead:
    """An input that the library reads: from `offset` of an open file on."""

    value: Value
    descriptor: int
    offset: int


class Call:
    """The steps of one pass.

    Args:
        steps: those that widen, compute and sum up magnitudes, in order.
        reads: inputs that the library reads; the others are in their buffers when it is called.
        products: statistics of dot products, with what they are taken of.
        magnitudes: statistics of magnitudes, by instruction.
        records: statistics known so far, by instruction.
    """

    def __init__(
        self,
        instructions: Sequence[Instruction],
        steps: Sequence[Step],
        reads: Sequence[PlainRead],
        products: Sequence[tuple[LaneSums, Sequence[Value]]],
        magnitudes: Mapping[int, LaneSums],
        memory: Memory,
        workspace: NativeWorkspace,
        records: Mapping[int, Record],
    ) -> None:
        self._instructions = instructions
        self._inputs = reads
        self._memory = memory
        self._records = records
        self._magnitudes = magnitudes
        self._slots = {step.result: step.slot for step in steps}
        self._stride = memory.tile_elements * 4 + TILE_SKEW
        self._tiles = workspace.tiles((max(self._slots.values(), default=-1) + 1) * self._stride)
        self._alive: list[object] = []  # what the structures point to
        self._steps = (native.Step * len(steps))(*[self._step(step) for step in steps])
        self._reads = (native.Read * len(reads))(*[self._read(read) for read in reads])
        self._products = (native.Products * len(products))(*[self._product(*it) for it in products])

    def run(self, elements: int, start: int, *, reads: bool, sums: bool) -> None:
        """Computes the block that begins at element `start`; with `sums`, adds it to them.

        Raises:
            RunError: an input could not be read.
        """
        error = ctypes.c_int32()
        failed = native.loaded().mergeflow_run(
            self._reads,
            len(self._reads) if reads else 0,
            self._steps,
            len(self._steps),
            self._products,
            len(self._products),
            sums,
            elements,
            start,
            self._memory.part_elements,
            self._memory.tile_elements,
            ctypes.byref(error),
        )
        if failed:
            raise self._failure(self._inputs[failed - 1], error.value)

    def _failure(self, read: PlainRead, error: int) -> RunError:
        source = self._instructions[read.value.instruction].source
        assert source is not None  # what is read lies in a file
        file = source.segments[0].file
        return became_shorter(file) if error < 0 else RunError(f"cannot read {file.path}: {os.strerror(error)}")

    def _step(self, step: Step) -> native.Step:
        if step.kind == "update":
            return self._magnitude(step)
        assert step.result is not None  # a step that computes has a result
        encoded = Encoded(WIDEN) if step.kind == "widen" else self._encoded(step.number)
        narrow = step.inputs[0].dtype if step.kind == "widen" else step.result.dtype
        with np.errstate(over="ignore"):  # a number too large makes infinities, which the checks of results find
            numbers: NDArray[np.float32 | np.int32] = np.array(encoded.numbers, dtype=np.float32)
        if encoded.integers is not None:
            numbers = encoded.integers
        self._alive.append(numbers)
        return native.Step(
            encoded.operation,
            DTYPES[narrow.name],
            len(step.inputs),
            encoded.flag,
            encoded.index,
            encoded.words,
            self._operand(step.result),
            self._operands(step.inputs),
            numbers.ctypes.data,
        )

    def _magnitude(self, step: Step) -> native.Step:
        """Magnitudes are summed up among the steps, while what they are of is at hand."""
        totals = self._magnitudes[step.number].totals
        self._alive.append(totals)
        place, dtype = native.Operand(totals.ctypes.data, 0, 0), DTYPES[step.inputs[0].dtype.name]
        return native.Step(MAGNITUDES, dtype, 1, 0, totals.shape[1], (0, 0), place, self._operands(step.inputs), None)

    def _encoded(self, i: int) -> Encoded:
        instruction = self._instructions[i]
        records = [self._records[j] for j in instruction.inputs if j in self._records]
        return NATIVE[instruction.op](records, instruction.parameters, self._memory.tile_elements)

    def _read(self, read: PlainRead) -> native.Read:
        return native.Read(self._operand(read.value), read.offset, read.descriptor, read.value.dtype.itemsize)

    def _product(self, statistic: LaneSums, values: Sequence[Value]) -> native.Products:
        totals = statistic.totals
        dtypes = (ctypes.c_int32 * len(values))(*[DTYPES[value.dtype.name] for value in values])
        self._alive += [statistic, dtypes]
        return native.Products(
            totals.ctypes.data, totals.shape[1], len(values), self._operands(values), ctypes.addressof(dtypes)
        )

    def _operands(self, values: Sequence[Value]) -> ctypes.Array[native.Operand]:
        operands = (native.Operand * len(values))(*[self._operand(value) for value in values])
        self._alive.append(operands)
        return operands

    def _operand(self, value: Value) -> native.Operand:
        itemsize = value.dtype.itemsize
        if value in self._memory.blocks:
            return native.Operand(address(self._memory.blocks[value]), itemsize, itemsize)
        if value in self._memory.parts:
            return native.Operand(address(self._memory.parts[value]), itemsize, 0)
        return native.Operand(address(self._tiles) + self._slots[value] * self._stride, 0, 0)


def narrow_statistics(steps: Sequence[Step]) -> list[Step]:
    """The same steps, statistics taken of values in the dtype they are stored in: the library widens as it reads."""
    narrow = {step.result: step.inputs[0] for step in steps if step.kind == "widen"}
    taken = [_taken_of(narrow, step) if step.kind == "update" else step for step in steps]
    used = {value for step in taken for value in step.inputs}
    return [step for step in taken if step.kind != "widen" or step.result in used]


def _taken_of(narrow: Mapping[Value | None, Value], step: Step) -> Step:
    return replace(step, inputs=tuple(narrow.get(value, value) for value in step.inputs))
