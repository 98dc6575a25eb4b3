"""What of a planned output exists already: in the earlier output, or in what an interrupted run left behind.

    kept      the target holds a shard with this very content (under any file name): it gets a second name, no copy
    resumed   an interrupted run had completed it
    rebuilt   it is written anew; a tensor that the earlier output (or another candidate of the same sweep) holds is
              copied by the kernel from there
    patched   asked for, and the target holds a shard of the same layout: what changes is written over it in place

Two contents are the same when their keys are. Nothing is written here, so that a plan can say what a run would do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from mergeflow.output.journal import JOURNAL_FILE, read_journal
from mergeflow.output.layout import OutputTensor, Shard
from mergeflow.output.patch_record import PATCH_SUFFIX
from mergeflow.output.target import NEXT_FOLDER as NEXT_FOLDER
from mergeflow.output.target import Target

ShardState = Literal["kept", "resumed", "rebuilt", "patched"]

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
        places: of the tensors of a rebuilt shard, in rising order; of a patched one, those that change, in the patch
            file; empty for the others.
        patch_key: of a patched shard: what its patch is known by.
    """

    shard: Shard
    state: ShardState
    source: Path | None = None
    places: tuple[Place, ...] = ()
    patch_key: str | None = None

    @property
    def file(self) -> str:
        """The name in next/ of what is written for it: the shard, or its patch."""
        return self.shard.file + PATCH_SUFFIX if self.state == "patched" else self.shard.file

    @property
    def nbytes(self) -> int:
        """The size of that file."""
        return sum(it.extent.nbytes for it in self.places) if self.state == "patched" else self.shard.size

    @property
    def key(self) -> str | None:
        """What that file is known by in the journal; None when nothing may be assumed about it."""
        return self.patch_key if self.state == "patched" else self.shard.key

    @property
    def is_to_write(self) -> bool:
        """Whether a file is to be written for it (when no earlier run has)."""
        return self.state == "rebuilt" or (self.state == "patched" and self.source is None)


NOWHERE: Mapping[str, Extent] = MappingProxyType({})


def compare(
    target: Target, shards: Sequence[Shard], token: str = "", elsewhere: Mapping[str, Extent] = NOWHERE
) -> tuple[ShardWork, ...]:
    """What is to be done for each of `shards` to write them to `target`, in their order.

    `token` is that of the run whose partial files the places point into; a plan that writes nothing has none.
    `elsewhere` are tensors that other folders hold, by their keys.
    """
    kept = {shard.key: target.path / shard.file for shard in target.intact if shard.key is not None}
    finished = target.staging / NEXT_FOLDER
    resumed = {key: finished / file for key, file in read_journal(target.staging / JOURNAL_FILE, finished).items()}
    present = {**elsewhere, **present_tensors(target)}
    named = _named_tensors(target)

    works = []
    for shard in shards:
        if shard.key in kept:
            works.append(ShardWork(shard, "kept", source=kept[shard.key]))
        elif shard.key in resumed and resumed[shard.key].name == shard.file:
            works.append(ShardWork(shard, "resumed", source=resumed[shard.key]))
        else:
            partial = partial_path(target.staging, shard.file, token)
            works.append(ShardWork(shard, "rebuilt", places=_places(shard, partial, present, named)))
    return tuple(works)


def partial_path(staging: Path, file: str, token: str) -> Path:
    """Where in the staging folder the run called `token` writes a file until it is complete.

    The token makes the name this run's own: a task that outlives its run (on a cluster, say) opens files by path, and
    must not find the next run's.
    """
    return staging / ".".join(part for part in (file, token, PARTIAL_SUFFIX[1:]) if part)


def bytes_to_write(works: Sequence[ShardWork]) -> int:
    """How many bytes of shards the run will write, copies from the earlier output included."""
    return sum(work.nbytes for work in works if work.is_to_write)


def present_tensors(target: Target) -> dict[str, Extent]:
    """Where the earlier output holds the tensor of each key."""
    present = {}
    for shard in target.intact:
        for placed in shard.tensors:
            if placed.tensor.key is not None:
                extent = Extent(target.path / shard.file, placed.offset, placed.tensor.nbytes)
                present[placed.tensor.key] = extent
    return present


def _named_tensors(target: Target) -> dict[tuple[str, str | None], Extent]:
    """Where the earlier output holds the tensor of each name and key."""
    return {
        (placed.tensor.name, placed.tensor.key): Extent(target.path / shard.file, placed.offset, placed.tensor.nbytes)
        for shard in target.intact
        for placed in shard.tensors
    }


def _places(
    shard: Shard,
    partial: Path,
    present: Mapping[str, Extent],
    named: Mapping[tuple[str, str | None], Extent],
) -> tuple[Place, ...]:
    places = []
    for placed in shard.tensors:
        tensor = placed.tensor
        existing = None
        if tensor.key is not None:
            # The same value may be there several times; under its own name it lies beside its neighbours.
            existing = named.get((tensor.name, tensor.key)) or present.get(tensor.key)
        if existing is not None and existing.nbytes != tensor.nbytes:
            existing = None
        places.append(Place(tensor, Extent(partial, placed.offset, tensor.nbytes), existing))
    return tuple(places)
