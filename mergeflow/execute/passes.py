"""What every evaluation of a program does alike: what it knows at the start, and which blocks a pass visits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol, TypeVar, cast

from mergeflow.graph.program import Program
from mergeflow.methods.kernels.protocols import Record


class Wanting(Protocol):
    """A statistic that says which elements it must see."""

    @property
    def wanted(self) -> range: ...


Pending = TypeVar("Pending", bound=Wanting)


def known_records(program: Program) -> dict[int, Record]:
    """The statistics that a program brings along, by instruction."""
    return {i: cast(Record, it.record) for i, it in enumerate(program.instructions) if it.record is not None}


def visits(
    size: int, length: int, pending: Mapping[int, Pending], *, first: bool
) -> Iterator[tuple[int, int, dict[int, Pending]]]:
    """The blocks of a pass, in rising order: (start, elements, the statistics that want some of it).

    The first time a pass visits all blocks; then only those that a statistic wants.
    """
    for start in range(0, size, length):
        elements = min(length, size - start)
        asking = {i: s for i, s in pending.items() if s.wanted.start < start + elements and start < s.wanted.stop}
        if first or asking:
            yield start, elements, asking
