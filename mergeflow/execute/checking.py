"""What is noticed of a result on its way out: a NaN or infinity, and that it equals an input byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from mergeflow.dtypes import DType
from mergeflow.execute.inputs import ReadInput
from mergeflow.graph.program import READ, Program

COMPARED_FIRST = 4096

# Index of the first NaN or infinity among numbers of a dtype in memory; None when there is none.
FindNonFinite = Callable[[memoryview, DType], int | None]


@dataclass(frozen=True, slots=True)
class NonFinite:
    """The first non-finite number of an output tensor: its flat index, and whether an input tensor of it has any.

    Whole tensors are what counts, not the element or its block: a dot product that is NaN makes every element NaN, and
    what a run says must not depend on how tensors are cut.
    """

    index: int
    inherited: bool


class OutputChecks:
    """Looks at the blocks of a program's sinks.

    Args:
        again: host memory of some bytes, for inputs that are read again.
        block_elements: how many elements of an input are read at once.

    Attributes:
        same_as: for each sink, the inputs that it has equalled so far.
        not_finite: for each sink that has one, its first NaN or infinity.
    """

    def __init__(
        self,
        program: Program,
        read: ReadInput,
        again: Callable[[int], memoryview],
        block_elements: int,
        find_non_finite: FindNonFinite,
    ) -> None:
        self.same_as: dict[int, set[int]] = {}
        self.not_finite: dict[int, NonFinite] = {}
        self._program = program
        self._read = read
        self._again = again
        self._block_elements = block_elements
        self._find_non_finite = find_non_finite
        self._originals = [i for i, it in enumerate(program.instructions) if it.kind == "load"]

    def look(self, sink: int, start: int, block: memoryview) -> None:
        """Takes the bytes of one block of a sink, in rising order of `start`, the index of its first element."""
        dtype = self._dtype(self._program.sinks[sink].instruction)
        bad = self._find_non_finite(block, dtype) if sink not in self.not_finite else None
        if bad is not None:
            inputs = self._inputs_of(self._program.sinks[sink].instruction)
            inherited = any(self._has_non_finite(i) for i in inputs)
            self.not_finite[sink] = NonFinite(start + bad, inherited)
        self._compare(sink, start, block, dtype)

    def _dtype(self, i: int) -> DType:
        dtype = self._program.instructions[i].dtype
        assert dtype is not None  # inputs and sinks are tensors
        return dtype

    def _inputs_of(self, i: int) -> Iterator[int]:
        """The tensors on disk, of inputs and of the cache, that a value depends on."""
        instructions = self._program.instructions
        found, waiting = {i}, [i]
        while waiting:
            inputs = set(instructions[waiting.pop()].inputs) - found
            found |= inputs
            waiting += inputs
        return (j for j in sorted(found) if instructions[j].kind in READ)

    def _has_non_finite(self, i: int) -> bool:
        """Whether an input has a NaN or infinity, anywhere: a statistic carries it to every element of the result."""
        size, most, dtype = self._program.size, self._block_elements, self._dtype(i)
        blocks = (self._original(i, start, min(most, size - start)) for start in range(0, size, most))
        return any(self._find_non_finite(block, dtype) is not None for block in blocks)

    def _compare(self, sink: int, start: int, block: memoryview, dtype: DType) -> None:
        """Note which inputs an output has equalled so far; a short prefix settles it for almost every tensor."""
        if sink not in self.same_as:
            prefix = block[: COMPARED_FIRST * dtype.itemsize]
            alike = [i for i in self._originals if self._dtype(i) == dtype]
            self.same_as[sink] = {i for i in alike if self._equals(i, start, prefix)}
        candidates = self.same_as[sink]
        candidates -= {i for i in candidates if not self._equals(i, start, block)}

    def _equals(self, i: int, start: int, block: memoryview) -> bool:
        original = self._original(i, start, len(block) // self._dtype(i).itemsize)
        return np.array_equal(np.frombuffer(original, np.uint8), np.frombuffer(block, np.uint8))

    def _original(self, i: int, start: int, elements: int) -> memoryview:
        """An input's numbers, read again: the buffer they were in may hold another value by now."""
        host = self._again(elements * self._dtype(i).itemsize)
        self._read(i, start, host)
        return host
