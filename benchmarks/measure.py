"""One command, measured from outside: wall time, processor time, and the most memory its process has had.

Memory is the kernel's count for the child (`wait4`): the largest process of its tree, pages of mapped files included.
A child is born with its parent's count, so the process that measures must stay small: it imports no numpy.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


class CommandFailed(Exception):
    """A measured command ended with an error; the message is the end of what it printed."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of a command."""

    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Samples:
    """Repeated runs of the same command; each figure is the median of its own."""

    wall_seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]
    peak_bytes: tuple[int, ...]

    def wall(self) -> float:
        return statistics.median(self.wall_seconds)

    def cpu(self) -> float:
        return statistics.median(self.cpu_seconds)

    def peak(self) -> float:
        return statistics.median(self.peak_bytes)


def collect(samples: Sequence[Sample]) -> Samples:
    return Samples(
        wall_seconds=tuple(round(sample.wall_seconds, 3) for sample in samples),
        cpu_seconds=tuple(round(sample.cpu_seconds, 3) for sample in samples),
        peak_bytes=tuple(sample.peak_bytes for sample in samples),
    )


def measure(command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> Sample:
    """Run a command to its end, its output going to `log`.

    Raises:
        CommandFailed: it ended with another code than 0.
    """
    # What an earlier command left to be written would be paid for by this one.
    os.sync()
    with log.open("wb") as output:
        start = time.perf_counter()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
    # The child is reaped: without this, Popen would wait for it again.
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise CommandFailed(f"{' '.join(command)}\nended with {child.returncode}:\n{tail(log)}")
    return Sample(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def tail(log: Path, lines: int = 20) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
