"""The one place where the name of a cache becomes a cache."""

from __future__ import annotations

from pathlib import Path

from mergeflow.cache.store import Cache


def open_cache(place: Path | str) -> Cache:
    """The cache at `place`. Costs nothing, and makes nothing before something is written."""
    return Cache(Path(place))
