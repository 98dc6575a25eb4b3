"""What a task is told and what it answers: small frozen records that travel to workers and back, and need no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mergeflow.graph.memory import Budget


@dataclass(frozen=True, slots=True)
class Settings:
    """What every task of a run shares. Nothing here can change a value.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:i``.
        cache: the cache folder; None with ``--no-cache``.
        scratch: a folder for scratch files on the output's disk; empty when whatever is kept has room in memory.
        parts: a folder that ends with the run, for parts of views that may not stay in the cache.
        allow_non_finite: NaN and infinities that no input had are a warning instead of an error.
    """

    budget: Budget
    device: str
    cache: str | None
    scratch: str
    allow_non_finite: bool = False
    parts: str | None = None


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What a task did. `same_as` has, for (output, tensor), digests of the inputs that it equals, byte for byte."""

    task: str
    tensors: tuple[tuple[str, str], ...]
    read: int = 0
    written: int = 0
    cache_read: int = 0
    cache_written: int = 0
    seconds: float = 0.0
    same_as: Mapping[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
