"""The one place where the name of a cache becomes a cache.

A store is connected to once for each process, and not before something is asked of it: every task opens the cache anew.
What a connection depends on besides the URL is the environment, so another environment gets another one.
"""

from __future__ import annotations

import os
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mergeflow.cache.place import CachePlace, as_place, local_folder
from mergeflow.cache.store import Cache

if TYPE_CHECKING:
    from mergeflow.cache.sharing import Sharing

Where = CachePlace | Path | str

# What obstore reads, besides our own.
_CREDENTIALS = ("AWS_", "AZURE_", "GOOGLE_", "MERGEFLOW_CACHE_SECRET")


def open_cache(where: Where) -> Cache:
    """The cache at `where`: a folder, or a store with its local tier. Makes nothing before something is written."""
    place = as_place(where)
    folder = local_folder(place, os.environ, Path.cwd())
    if place.remote is None:
        return Cache(folder)
    from mergeflow.cache.tiers import TieredCache

    return TieredCache(folder, sharing=_SHARINGS.at(place.remote))


def open_local(where: Where) -> Cache:
    """What of the cache at `where` lies on this machine: all of it, or the local tier of a store."""
    return Cache(local_folder(as_place(where), os.environ, Path.cwd()))


class _Sharings:
    """The stores this process deals with."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._found: dict[tuple[object, ...], Sharing] = {}

    def at(self, url: str) -> Sharing:
        environment = sorted((name, value) for name, value in os.environ.items() if name.startswith(_CREDENTIALS))
        # A connection does not survive a fork: a child has its own.
        which = (url, os.getpid(), *environment)
        with self._guard:
            if which not in self._found:
                self._found[which] = _sharing(url)
            return self._found[which]


def _sharing(url: str) -> Sharing:
    from mergeflow.cache.document import Secret
    from mergeflow.cache.remote import Remote, connect
    from mergeflow.cache.sharing import Sharing

    secret = os.environ.get("MERGEFLOW_CACHE_SECRET")
    return Sharing(Remote(url, partial(connect, url)), Secret.of(secret) if secret else None)


_SHARINGS = _Sharings()
