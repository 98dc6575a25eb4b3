"""What a task is told and what it answers: small frozen records that travel to workers and back, and need no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mergeflow.cache.place import CachePlace
from mergeflow.graph.memory import Budget
from mergeflow.models.records import FileIdentity, TensorSource


@dataclass(frozen=True, slots=True)
class Settings:
    """What every task of a run shares. Nothing here can change a value.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:i``.
        cache: where the cache lies; None with ``--no-cache``.
        scratch: a folder for scratch files on the output's disk; empty when whatever is kept has room in memory.
        parts: a folder that ends with the run, for parts of views that may not stay in the cache.
        allow_non_finite: NaN and infinities that no input had are a warning instead of an error.
        compare: outputs are not written, but compared with what is there.
    """

    budget: Budget
    device: str
    cache: CachePlace | None
    scratch: str
    allow_non_finite: bool = False
    parts: str | None = None
    compare: bool = False


@dataclass(frozen=True, slots=True)
class InputDigests:
    """Digests of inputs that a task has hashed.

    Args:
        quiet: those of their files that nothing has touched since their headers were read.
        known: keys of statistics and tensors that the cache turned out to have.
    """

    digests: Mapping[TensorSource, str] = field(default_factory=dict)
    quiet: frozenset[FileIdentity] = frozenset()
    known: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        return sum(source.nbytes for source in self.digests)


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What a task did.

    Args:
        same_as: for (output, tensor), digests of the inputs that it equals, byte for byte.
        inputs: what it has found out about inputs whose digests were not known; `read` counts hashing them, too.
        different: for (output, tensor) that was compared and is not the same, the index of its first such element.
    """

    task: str
    tensors: tuple[tuple[str, str], ...]
    read: int = 0
    written: int = 0
    cache_read: int = 0
    cache_written: int = 0
    seconds: float = 0.0
    same_as: Mapping[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    inputs: InputDigests = InputDigests()
    different: Mapping[tuple[str, str], int] = field(default_factory=dict)
