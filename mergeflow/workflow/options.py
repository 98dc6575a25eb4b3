"""How a run is done. Nothing here can change a byte of its result."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mergeflow.cache.place import CachePlace, default_place, state_folder
from mergeflow.errors import CacheError
from mergeflow.recipe.sizes import parse_size

LIMIT_VARIABLE = "MERGEFLOW_CACHE_LIMIT"


@dataclass(frozen=True, slots=True)
class Options:
    """How a run is done.

    Args:
        cache: a folder, or the URL of a store such as ``s3://bucket/prefix``; None for no cache.
        state: where this machine's memory of digests and of earlier runs lies.
        scheduler: ``threads``, ``processes`` or the address of a Dask scheduler.
        workers: tasks at a time, for ``threads`` and ``processes``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:i``.
        memory: bytes for buffers, all threads together; None for the least that keeps full speed.
        strict: warnings about the recipe are errors.
        allow_non_finite: NaN and infinities that no input had are a warning instead of an error.
        in_place: write what changes over the shards of an earlier output, where they keep their layout.
        cache_limit: the most the cache may take on this machine's disk, in bytes; None for a share of the disk.
    """

    cache: CachePlace | Path | str | None = field(default_factory=lambda: default_place(os.environ, Path.cwd()))
    state: Path = field(default_factory=lambda: state_folder(os.environ))
    scheduler: str = "threads"
    workers: int = field(default_factory=lambda: available_cores())
    device: str = "auto"
    memory: int | None = None
    strict: bool = False
    allow_non_finite: bool = False
    in_place: bool = False
    cache_limit: int | None = field(default_factory=lambda: named_limit(os.environ))


def named_limit(environ: Mapping[str, str]) -> int | None:
    """The size limit that the environment names, in bytes; None when it names none.

    Raises:
        CacheError: it is not a size.
    """
    text = environ.get(LIMIT_VARIABLE)
    if not text:
        return None
    try:
        return parse_size(text)
    except ValueError as error:
        raise CacheError(f"${LIMIT_VARIABLE}: {error}") from error


def available_cores() -> int:
    """The processors this process may use."""
    return len(os.sched_getaffinity(0))


def free_memory() -> int:
    """Bytes of memory that are free or can be freed at once, as the kernel estimates it."""
    # A kernel without the estimate: assume a small machine.
    return _kernel_figure("/proc/meminfo", "MemAvailable:") or 1 << 32


def peak_memory() -> int:
    """The most resident memory this process has had, in bytes."""
    # Not getrusage: its figure starts at what the parent had when it started us.
    return _kernel_figure("/proc/self/status", "VmHWM:") or 0


def _kernel_figure(path: str, name: str) -> int | None:
    with open(path, encoding="ascii", errors="replace") as lines:
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), None)
