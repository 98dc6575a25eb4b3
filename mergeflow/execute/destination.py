"""Where the results of a program go, as an evaluation sees it."""

from __future__ import annotations

from typing import Protocol

from mergeflow.graph.program import Instruction, Sink
from mergeflow.methods.kernels.protocols import Record


class Destination(Protocol):
    """Takes blocks of tensors, in rising order, and records of statistics."""

    def write(self, sink: Sink, start_byte: int, block: memoryview) -> None: ...

    def record(self, instruction: Instruction, record: Record) -> None: ...
