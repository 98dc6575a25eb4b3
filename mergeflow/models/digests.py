"""Each input byte is hashed once per machine: digests, computed in parallel and remembered.

    memory = DigestMemory(cache / "digests.sqlite")
    memory.known(sources)                           what is remembered; reads no weights
    memory.compute(sources, threads, on_bytes)      all of them; hashes what is not remembered

A digest may be remembered only if the file cannot have changed unnoticed since. The danger (git calls it "racily
clean"): a file is written, hashed, and written again within one tick of the file system's clock, so that the second
write leaves the same time. So a file younger than that tick when hashing began is hashed, but not remembered; the next
run hashes it once more. The tick is taken as 50 ms (Linux stamps files every 4 to 10 ms), or 2 s when ctime has no
fraction of a second: such a file system counts whole seconds, or, like FAT, every other one. What counts is the later
of mtime and ctime: a file fresh from an archive shows an old mtime.

A failed or interrupted call keeps what it had finished.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from mergeflow.errors import CheckpointError
from mergeflow.models.hashing import BLOCK_BYTES, batches, hash_batch
from mergeflow.models.identity import is_remote
from mergeflow.models.memory import Row, recall, remember, rows_of
from mergeflow.models.records import FileIdentity, TensorSource

SECOND = 1_000_000_000
FINE_TICK_NS = 50_000_000
COARSE_TICK_NS = 2 * SECOND
# Digests are kept each time this much has been hashed, so that a killed run loses seconds and not minutes.
SAVE_EVERY_BYTES = 4 << 30

_Batch = tuple[dict[TensorSource, str], frozenset[FileIdentity]]


def ignore_bytes(_count: int) -> None:
    """The progress callback of a caller that wants none."""


@dataclass(frozen=True, slots=True)
class DigestMemory:
    """Digests of tensors, remembered in the sqlite file `path` (None: not at all).

    `now_ns` is the clock, in nanoseconds since 1970, as file times are.
    """

    path: Path | None
    now_ns: Callable[[], int] = time.time_ns

    def known(self, sources: Iterable[TensorSource]) -> dict[TensorSource, str]:
        """The digests that are remembered. Opens no weights; 10,000 tensors take about a tenth of a second."""
        wanted = {source: tuple(rows_of(source)) for source in sources}
        files = dict.fromkeys(file for rows in wanted.values() for file, _ in rows)
        found = recall(self.path, files) if self.path is not None else {}
        return {
            source: digest
            for source, rows in wanted.items()
            if (digest := next((found[row] for row in rows if row in found), None)) is not None
        }

    def compute(
        self, sources: Iterable[TensorSource], threads: int, on_bytes: Callable[[int], None] = ignore_bytes
    ) -> dict[TensorSource, str]:
        """The digest of every tensor of `sources`, remembered or computed now.

        Args:
            threads: how many tensors are hashed at once; one thread hashes about 1.5 GB/s.
            on_bytes: told how many more bytes were hashed; called in the caller's thread.

        Raises:
            CheckpointError: a file has not been downloaded yet.
            RunError: a file was replaced since its header was read, or cannot be read.
        """
        wanted = list(dict.fromkeys(sources))
        digests = self.known(wanted)
        missing = [source for source in wanted if source not in digests]
        for source in missing:
            if any(is_remote(segment.file) for segment in source.segments):
                raise CheckpointError(
                    f"{source.segments[0].file.path}: has not been downloaded; its digests are unknown"
                )
        digests.update(self._hash(missing, max(1, threads), on_bytes))
        return digests

    def notebook(self) -> Notebook:
        """For whoever hashes tensors itself, from now on; what it notes is remembered when it is saved."""
        return Notebook(self.path, self.now_ns())

    def _hash(
        self, sources: list[TensorSource], threads: int, on_bytes: Callable[[int], None]
    ) -> dict[TensorSource, str]:
        """Hash in `threads` threads, remembering as it goes, also when it ends in an error."""
        stop = threading.Event()
        begun_ns = self.now_ns()
        notes = Notebook(self.path, begun_ns)
        buffers: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        for _ in range(threads):
            buffers.put(memoryview(bytearray(BLOCK_BYTES)))

        def task(batch: list[TensorSource]) -> _Batch:
            buffer = buffers.get()
            try:
                return hash_batch(batch, buffer, stop)
            finally:
                buffers.put(buffer)

        digests: dict[TensorSource, str] = {}
        with ThreadPoolExecutor(threads, thread_name_prefix="digest") as pool:
            futures = [pool.submit(task, batch) for batch in batches(sources)]
            try:
                for future in as_completed(futures):
                    found, quiet = future.result()
                    digests.update(found)
                    notes.add(found, quiet)
                    on_bytes(sum(source.nbytes for source in found))
            finally:
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                _add_finished(futures, digests, notes)
                notes.save()
        return digests


class Notebook:
    """What has been computed since `begun_ns` and not yet written to the memory. One thread at a time."""

    def __init__(self, path: Path | None, begun_ns: int) -> None:
        self._path = path
        self._begun_ns = begun_ns
        self._rows: dict[Row, str] = {}
        self._bytes = 0

    def add(self, digests: Mapping[TensorSource, str], quiet: frozenset[FileIdentity]) -> None:
        """Note those digests whose files are certain not to have changed unnoticed: of `quiet` ones, and older."""
        for source, digest in digests.items():
            files = {segment.file for segment in source.segments}
            if files <= quiet and all(is_settled(file, self._begun_ns) for file in files):
                self._rows.update((row, digest) for row in rows_of(source))
                self._bytes += source.nbytes
        if self._bytes >= SAVE_EVERY_BYTES:
            self.save()

    def save(self) -> None:
        """Write what was noted to the memory."""
        if self._path is not None and self._rows and not remember(self._path, self._rows):
            self._path = None  # said once; trying again and again would only say it again
        self._rows, self._bytes = {}, 0


def is_settled(file: FileIdentity, now_ns: int) -> bool:
    """Whether a write at `now_ns` or later is certain to change the file's times."""
    tick = COARSE_TICK_NS if file.ctime_ns % SECOND == 0 else FINE_TICK_NS
    return max(file.mtime_ns, file.ctime_ns) + tick < now_ns


def _add_finished(futures: Iterable[Future[_Batch]], digests: dict[TensorSource, str], notes: Notebook) -> None:
    """After an error or an interruption: keep what other threads had finished."""
    for future in futures:
        if future.done() and not future.cancelled() and future.exception() is None:
            found, quiet = future.result()
            if not found.keys() <= digests.keys():
                notes.add(found, quiet)
