"""What happens during a run, as one stream of frozen records.

Progress bars, logs, reports and tests all read this stream; nothing else tells them anything. Events may come from
several threads, so a listener must be safe to call from any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PhaseStarted:
    """A part of the run begins: ``download``, ``digest``, ``merge`` or ``publish``; `total_bytes` is what it moves."""

    name: str
    total_bytes: int
    total_tensors: int = 0


@dataclass(frozen=True, slots=True)
class BytesMoved:
    """Bytes were read from inputs (or the cache) and written to outputs since the last such event."""

    read: int = 0
    written: int = 0


@dataclass(frozen=True, slots=True)
class TensorsDone:
    """A task brought these tensors (output, name) to their places."""

    task: str
    tensors: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class PhaseFinished:
    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Warned:
    """Something the user should know, in one line."""

    message: str


@dataclass(frozen=True, slots=True)
class CandidateStarted:
    """A sweep goes on with its candidate `number` of `total`, from 1."""

    name: str
    number: int
    total: int


Event = CandidateStarted | PhaseStarted | BytesMoved | TensorsDone | PhaseFinished | Warned
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The listener of a run nobody watches."""
