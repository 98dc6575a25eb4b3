"""A cache whose disk is full fails no run: what has no room is not kept, and computed again when it is wanted again."""

from __future__ import annotations

import errno
from collections.abc import Callable
from types import TracebackType

from mergeflow.cache.limit import disk_of
from mergeflow.cache.store import Cache
from mergeflow.errors import CacheError
from mergeflow.execute.files import writing

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class CacheFull:
    """Swallows, in a `with` block, the error of a full disk, and remembers that it happened."""

    message = (
        "the cache's disk is full: what has no room there is not kept; free some space, name another --cache, "
        "or set --cache-limit so that less is kept"
    )

    def __init__(self) -> None:
        self.happened = False

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(error, OSError) and error.errno in _FULL:
            self.happened = True
            return True
        return False

    def absorbs(self, write: Callable[[], None]) -> bool:
        """Whether `write` went well; False when the disk is full, and any other failure is raised as a RunError."""
        with writing("the cache"), self:
            write()
            return True
        return False


def has_room(cache: Cache, nbytes: int) -> bool:
    """Whether the disk of a cache has so many bytes left."""
    try:
        return disk_of(cache.folders).free >= nbytes
    except CacheError:
        return False
