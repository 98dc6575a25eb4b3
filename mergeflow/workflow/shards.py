"""The shards of a run that are not complete yet: which tensors each one waits for, and declaring it complete.

What an earlier output has unchanged is copied by the kernel in a thread of its own, beside the tasks: it takes little
processor time where they take nothing else, and one copier at a time is as fast as several (measured: two threads
copying into one file gain nothing, and the disk is one). Tasks that are a shard ahead of it are slowed down: a shard is
complete when both have done their part, and what a run has computed for shards that are not would be lost with it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from mergeflow.execute.events import BytesMoved, Event, Listener
from mergeflow.execute.schedule import Stopped
from mergeflow.output.compare import ShardWork
from mergeflow.output.copies import copy_run, copy_runs
from mergeflow.output.layout import Shard
from mergeflow.output.staging import Staging, complete_shard

# How long a task that is ahead of the copying waits at each of its blocks.
AHEAD_SECONDS = 0.1


class OpenShards:
    """Which tensors each shard still waits for. Any thread may ask and tell."""

    def __init__(self, stagings: Mapping[str, Staging]) -> None:
        self._guard = threading.RLock()
        self._stagings = stagings
        self._works: dict[str, list[ShardWork]] = {
            step: [work for work in staging.works if not _is_complete(staging, work)]
            for step, staging in stagings.items()
        }
        self._waiting: dict[tuple[str, str], set[str]] = {
            (step, work.shard.file): {place.tensor.name for place in work.places}
            for step, works in self._works.items()
            for work in works
        }
        # Shards in their order, as far as computed tensors have arrived and as far as they are copied.
        self._number = {name: number for number, name in enumerate(self._waiting)}
        self._reached = 0
        self._copied = 0
        self._more_copied = threading.Condition(self._guard)
        self._shard_of = {
            (step, place.tensor.name): work.shard
            for step, works in self._works.items()
            for work in works
            for place in work.places
        }

    def works(self, step: str) -> list[ShardWork]:
        """The shards of an output that are not complete yet."""
        return self._works[step]

    @property
    def bytes_to_copy(self) -> int:
        """How many bytes of incomplete shards lie unchanged in other files."""
        places = (place for works in self._works.values() for work in works for place in work.places)
        return sum(place.extent.nbytes for place in places if place.copy_from is not None)

    def copy_unchanged(self, copied: Callable[[int], None]) -> None:
        """Copy the tensors that the earlier output has unchanged; complete the shards that waited for nothing else.

        `copied` is told of every part, and may raise to end this.
        """
        for step, works in self._works.items():
            for work in works:
                for run in copy_runs(work.places):
                    copy_run(run, copied)
                    for staging, shard in self.arrived([(step, name) for name in run.tensors]):
                        complete_shard(staging, shard)
                if not work.places:
                    complete_shard(self._stagings[step], work.shard)
                with self._more_copied:
                    self._copied += 1
                    self._more_copied.notify_all()

    def let_copies_catch_up(self, seconds: float) -> None:
        """Wait so long, at most, when the tasks are in a later shard than the copying."""
        with self._more_copied:
            self._more_copied.wait_for(lambda: self._reached <= self._copied, seconds)

    def computed(self, tensors: Sequence[tuple[str, str]]) -> list[tuple[Staging, Shard]]:
        """The same as `arrived`, for tensors that a task has computed."""
        with self._guard:
            numbers = [self._number[step, self._shard_of[step, name].file] for step, name in tensors]
            self._reached = max([self._reached, *numbers])
        return self.arrived(tensors)

    def arrived(self, tensors: Sequence[tuple[str, str]]) -> list[tuple[Staging, Shard]]:
        """Note that tensors are in their places; returns the shards that are complete by that."""
        complete = []
        with self._guard:
            for step, name in tensors:
                shard = self._shard_of[step, name]
                waiting = self._waiting[step, shard.file]
                if name in waiting:
                    waiting.remove(name)
                    if not waiting:
                        complete.append((self._stagings[step], shard))
        return complete


@contextmanager
def copying(shards: OpenShards, listen: Listener) -> Iterator[Listener]:
    """Copy what is unchanged while the with-block runs its tasks; all of it is copied when the block is left.

    Yields the listener for these tasks: it ends them when the copying has failed. When the block fails, or the user
    interrupts, the copying ends at its next part.
    """
    stop = threading.Event()
    failed: list[BaseException] = []

    def copied(count: int) -> None:
        if stop.is_set():
            raise Stopped
        listen(BytesMoved(written=count))

    def copy() -> None:
        try:
            shards.copy_unchanged(copied)
        except Stopped:
            pass
        except BaseException as error:  # raised again by whoever waits for this thread
            failed.append(error)

    def listen_for_tasks(event: Event) -> None:
        if failed:
            raise failed[0]
        if isinstance(event, BytesMoved):
            shards.let_copies_catch_up(AHEAD_SECONDS)
        listen(event)

    thread = threading.Thread(target=copy, name="copy unchanged tensors")
    thread.start()
    try:
        yield listen_for_tasks
        thread.join()
    finally:
        stop.set()
        thread.join()
    if failed:
        raise failed[0]


def _is_complete(staging: Staging, work: ShardWork) -> bool:
    """A shard that needs no work, or that an earlier attempt of this run has completed."""
    return work.state in ("kept", "resumed") or (staging.next / work.file).exists()
