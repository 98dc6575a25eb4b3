"""Tensors that a shard has unchanged from an earlier file, copied in as few runs as there can be.

Where a shard keeps its layout, the unchanged tensors on both sides of a changed one lie next to each other in the old
file and in the new one, so that what is copied is two long runs, however many tensors they are. A file system that lets
files share blocks then copies nothing, and any other reads and writes in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mergeflow.errors import RunError
from mergeflow.output.compare import Extent, Place
from mergeflow.output.failures import reported
from mergeflow.output.transfer import Copied, copy_range, nobody_counts


@dataclass(frozen=True, slots=True)
class CopyRun:
    """Bytes that lie in one piece in an earlier file and in the new one, and the tensors they are."""

    source: Extent
    to: Extent
    tensors: tuple[str, ...]


def copy_runs(places: Sequence[Place]) -> tuple[CopyRun, ...]:
    """The runs in which the unchanged tensors among `places` are copied, in their order."""
    runs: list[CopyRun] = []
    for place in places:
        if place.copy_from is None:
            continue
        run = CopyRun(place.copy_from, place.extent, (place.tensor.name,))
        if runs and _follows(runs[-1].source, run.source) and _follows(runs[-1].to, run.to):
            last = runs.pop()
            run = CopyRun(_both(last.source, run.source), _both(last.to, run.to), (*last.tensors, *run.tensors))
        runs.append(run)
    return tuple(runs)


def copy_run(run: CopyRun, copied: Copied = nobody_counts) -> None:
    """Copy a run without passing it through this process; `copied` is told of every part, and may raise to end it.

    Raises:
        RunError: it could not be read or written.
    """
    what = run.tensors[0] if len(run.tensors) == 1 else f"{len(run.tensors)} tensors from {run.tensors[0]} on"
    with (
        reported(RunError, f"copy {what} from {run.source.file} to {run.to.file}"),
        run.source.file.open("rb") as earlier,
        run.to.file.open("rb+") as partial,
    ):
        copy_range(earlier.fileno(), run.source.offset, partial.fileno(), run.to.offset, run.to.nbytes, copied=copied)


def _follows(one: Extent, other: Extent) -> bool:
    return one.file == other.file and one.offset + one.nbytes == other.offset


def _both(one: Extent, other: Extent) -> Extent:
    return Extent(one.file, one.offset, one.nbytes + other.nbytes)
