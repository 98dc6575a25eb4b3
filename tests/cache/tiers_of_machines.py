"""Machines that share a store: each with a local tier and a process of its own, in front of one store in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import obstore
from cache_values import SMALL_CHUNK
from obstore.store import MemoryStore

from mergeflow.cache.document import Secret
from mergeflow.cache.remote import Remote
from mergeflow.cache.sharing import Sharing
from mergeflow.cache.tiers import TieredCache

URL = "s3://bucket/prefix"


def machine(
    folder: Path,
    store: MemoryStore,
    *,
    secret: str | None = None,
    remote: Callable[..., Remote] = Remote,
    chunk_bytes: int = SMALL_CHUNK,
) -> TieredCache:
    """A cache whose local tier lies in `folder`, as a process that has asked nothing yet opens it."""
    sharing = Sharing(remote(URL, lambda: store), Secret.of(secret) if secret is not None else None)
    return TieredCache(folder, chunk_bytes=chunk_bytes, sharing=sharing)


def objects(store: MemoryStore) -> dict[str, bytes]:
    """Everything in a store, by name."""
    names = [str(meta["path"]) for page in obstore.list(store) for meta in page]
    return {name: bytes(obstore.get(store, name).bytes()) for name in names}


def folder_of(key: str) -> str:
    """Where the objects of an entry lie."""
    return f"v1/{key[:2]}/{key}"
