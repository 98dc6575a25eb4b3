"""What a process knows of its dealings with a store: what is damaged there, what waits to be put there, what failed.

Every task opens the cache anew; this stays, so that a store that fails is asked once and warned of once, and an entry
that was found damaged is not fetched a second time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager

from mergeflow.cache.document import Secret
from mergeflow.cache.remote import Remote, StoreDown, StoreRefuses

# From so many damaged entries on it is the store that is bad, not an entry.
MOST_DAMAGED = 8
_UPLOADS_AT_A_TIME = 16
_MOST_WAITING = 512
_FETCHED_AT_A_TIME = 64


class Sharing:
    """What one process knows of its dealings with one store: what it found damaged, what waits, what went wrong.

    Args:
        secret: what documents are sealed with; None for the plain seal.
    """

    def __init__(self, remote: Remote, secret: Secret | None) -> None:
        self.remote = remote
        self.secret = secret
        self.damaged: set[str] = set()
        self._count_damaged = 0
        self._may_read = True
        self._may_write = True
        self._guard = threading.Lock()
        self._fetching = [threading.Lock() for _ in range(_FETCHED_AT_A_TIME)]
        self._warnings: list[str] = []
        self._uploads: ThreadPoolExecutor | None = None
        self._waiting: set[Future[None]] = set()
        self._room = threading.BoundedSemaphore(_MOST_WAITING)

    @property
    def is_readable(self) -> bool:
        return not self.remote.is_left_alone and self._may_read and self._count_damaged < MOST_DAMAGED

    @property
    def is_writable(self) -> bool:
        return not self.remote.is_left_alone and self._may_write

    def distrust(self, key: str) -> None:
        """From now on the store's entry `key` counts as missing, until this process has put a new one there."""
        with self._guard:
            self.damaged.add(key)

    def found_damaged(self, key: str) -> None:
        """The same, of an entry that was fetched and is not what it should be."""
        self.distrust(key)
        with self._guard:
            self._count_damaged += 1
        if self._count_damaged >= MOST_DAMAGED:
            self._say(f"{self.remote.url} has {MOST_DAMAGED} damaged entries or more: nothing more is read from it")

    def replaced(self, key: str) -> None:
        """The store's entry `key` is now one of ours."""
        with self._guard:
            self.damaged.discard(key)

    def failed(self, consequence: str, error: StoreDown) -> None:
        """Says that the store failed, and leaves it alone for a while."""
        self.remote.leave_alone()
        self._say(f"the cache {self.remote.url} does not answer ({error}): {consequence}")

    def refused_reading(self, error: StoreRefuses) -> None:
        """Says that what is listed may not be read, and does not try again in this process."""
        self._may_read = False
        self._say(f"the cache {self.remote.url} cannot be read ({error}): this run computes what it counted on")

    def no_room(self, folder: str) -> None:
        """Says that the local tier's disk is full, and fetches nothing more in this process."""
        self._may_read = False
        self._say(f"{folder} has no room left for what {self.remote.url} has: this run computes it")

    def refused_writing(self, error: StoreRefuses) -> None:
        """Says that we may not write, and does not try again in this process."""
        self._may_write = False
        self._say(f"the cache {self.remote.url} cannot be written ({error}): others will not find what this computes")

    def take_warnings(self) -> tuple[str, ...]:
        """What is to be said since this was last called."""
        with self._guard:
            taken, self._warnings = tuple(self._warnings), []
        return taken

    def _say(self, warning: str) -> None:
        with self._guard:
            if warning not in self._warnings:
                self._warnings.append(warning)

    @contextmanager
    def fetching(self, key: str) -> Iterator[None]:
        """Held while an entry is fetched, so that this process fetches it once."""
        with self._fetching[int(key[:2], 16) % len(self._fetching)]:
            yield

    def later(self, work: Callable[[], None]) -> None:
        """Does `work` on another thread, soon; waits when too much waits already."""
        self._room.acquire()
        with self._guard:
            if self._uploads is None:
                self._uploads = ThreadPoolExecutor(_UPLOADS_AT_A_TIME, thread_name_prefix="mergeflow-upload")
            future = self._uploads.submit(work)
            self._waiting.add(future)
        future.add_done_callback(self._done)

    def settle(self) -> None:
        """Waits for what was to be done later."""
        with self._guard:
            waiting = set(self._waiting)
        wait(waiting)

    def _done(self, future: Future[None]) -> None:
        with self._guard:
            self._waiting.discard(future)
        self._room.release()
