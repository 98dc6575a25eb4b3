"""What of a planned output exists already: in the earlier output, or in what an interrupted run left behind.

    kept      the target holds a shard with this very content (under any file name): it gets a second name, no copy
    resumed   an interrupted run had completed it
    rebuilt   it is written anew; a tensor that the earlier output holds unchanged is copied by the kernel from there

Two contents are the same when their keys are. Nothing is written here, so that a plan can say what a run would do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mergeflow.output.journal import JOURNAL_FILE, read_journal
from mergeflow.output.layout import OutputTensor, Shard
from mergeflow.output.target import Target

ShardState = Literal["kept", "resumed", "rebuilt"]

NEXT_FOLDER = "next"
PARTIAL_SUFFIX = ".partial"


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of bytes in a file."""

    file: Path
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor's bytes go: at `extent`. `copy_from` is where the same bytes already lie, when they do."""

    tensor: OutputTensor
    extent: Extent
    copy_from: Extent | None = None


@dataclass(frozen=True, slots=True)
class ShardWork:
    """A planned shard and what is to be done for it.

    Args:
        source: the existing file, for a kept or resumed shard.
        places: of the tensors of a rebuilt shard, in rising order; empty for the others.
    """

    shard: Shard
    state: ShardState
    source: Path | None = None
    places: tuple[Place, ...] = ()


def compare(target: Target, shards: Sequence[Shard], token: str = "") -> tuple[ShardWork, ...]:
    """What is to be done for each of `shards` to write them to `target`, in their order.

    `token` is that of the run whose partial files the places point into; a plan that writes nothing has none.
    """
    kept = {shard.key: target.path / shard.file for shard in target.intact if shard.key is not None}
    finished = target.staging / NEXT_FOLDER
    resumed = {key: finished / file for key, file in read_journal(target.staging / JOURNAL_FILE, finished).items()}
    present = _present_tensors(target)

    works = []
    for shard in shards:
        if shard.key in kept:
            works.append(ShardWork(shard, "kept", source=kept[shard.key]))
        elif shard.key in resumed and resumed[shard.key].name == shard.file:
            works.append(ShardWork(shard, "resumed", source=resumed[shard.key]))
        else:
            works.append(
                ShardWork(shard, "rebuilt", places=_places(shard, partial_path(target.staging, shard, token), present))
            )
    return tuple(works)


def partial_path(staging: Path, shard: Shard, token: str) -> Path:
    """Where in the staging folder the run called `token` writes a shard until it is complete.

    The token makes the name this run's own: a task that outlives its run (on a cluster, say) opens files by path, and
    must not find the next run's.
    """
    return staging / ".".join(part for part in (shard.file, token, PARTIAL_SUFFIX[1:]) if part)


def bytes_to_write(works: Sequence[ShardWork]) -> int:
    """How many bytes of shards the run will write, copies from the earlier output included."""
    return sum(work.shard.size for work in works if work.state == "rebuilt")


def _present_tensors(target: Target) -> dict[str, Extent]:
    """Where the earlier output holds the tensor of each key."""
    present = {}
    for shard in target.intact:
        for placed in shard.tensors:
            if placed.tensor.key is not None:
                extent = Extent(target.path / shard.file, placed.offset, placed.tensor.nbytes)
                present[placed.tensor.key] = extent
    return present


def _places(shard: Shard, partial: Path, present: Mapping[str, Extent]) -> tuple[Place, ...]:
    places = []
    for placed in shard.tensors:
        tensor = placed.tensor
        existing = present.get(tensor.key) if tensor.key is not None else None
        if existing is not None and existing.nbytes != tensor.nbytes:
            existing = None
        places.append(Place(tensor, Extent(partial, placed.offset, tensor.nbytes), existing))
    return tuple(places)
