"""The shards of a run that are not complete yet: which tensors each one waits for, and declaring it complete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mergeflow.output.compare import ShardWork
from mergeflow.output.layout import Shard
from mergeflow.output.staging import Staging, complete_shard, copy_unchanged


class OpenShards:
    """Which tensors each shard still waits for."""

    def __init__(self, stagings: Mapping[str, Staging]) -> None:
        self._stagings = stagings
        self._works: dict[str, list[ShardWork]] = {
            step: [work for work in staging.works if not _is_complete(staging, work.shard)]
            for step, staging in stagings.items()
        }
        self._waiting: dict[tuple[str, str], set[str]] = {
            (step, work.shard.file): {place.tensor.name for place in work.places}
            for step, works in self._works.items()
            for work in works
        }
        self._shard_of = {
            (step, place.tensor.name): work.shard
            for step, works in self._works.items()
            for work in works
            for place in work.places
        }

    def works(self, step: str) -> list[ShardWork]:
        """The shards of an output that are not complete yet."""
        return self._works[step]

    def copy_unchanged(self) -> None:
        """Copy the tensors that the earlier output has unchanged; complete the shards that waited for nothing else."""
        for step, works in self._works.items():
            for work in works:
                copied = [place for place in work.places if place.copy_from is not None]
                for place in copied:
                    copy_unchanged(place)
                for staging, shard in self.arrived([(step, place.tensor.name) for place in copied]):
                    complete_shard(staging, shard)
                if work.state == "rebuilt" and not work.places:
                    complete_shard(self._stagings[step], work.shard)

    def arrived(self, tensors: Sequence[tuple[str, str]]) -> list[tuple[Staging, Shard]]:
        """Note that tensors are in their places; returns the shards that are complete by that."""
        complete = []
        for step, name in tensors:
            shard = self._shard_of[step, name]
            waiting = self._waiting[step, shard.file]
            waiting.discard(name)
            if not waiting:
                complete.append((self._stagings[step], shard))
        return complete


def _is_complete(staging: Staging, shard: Shard) -> bool:
    """A shard that needs no work, or that an earlier attempt of this run has completed."""
    work = next(work for work in staging.works if work.shard.file == shard.file)
    return work.state != "rebuilt" or (staging.next / shard.file).exists()
