"""A real cluster for a test: one `dask scheduler` and some `dask worker` processes on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).parents[1]
PATIENCE_SECONDS = 60.0

Found = TypeVar("Found")


@dataclass(frozen=True)
class Cluster:
    """The scheduler's address, its process, and the workers' (each with one thread, and nobody who restarts it)."""

    address: str
    scheduler: subprocess.Popen[bytes]
    workers: tuple[subprocess.Popen[bytes], ...]


@contextmanager
def dask_cluster(folder: Path, workers: int = 2) -> Iterator[Cluster]:
    """Start scheduler and workers on ports that are free, wait until they know each other; stop them at the end."""
    folder.mkdir(parents=True)
    contact = folder / "scheduler.json"
    with ExitStack() as stack:
        words = ("--port", "0", "--scheduler-file", contact)
        scheduler = stack.enter_context(_process("dask_scheduler", folder / "scheduler.log", *words))
        address = _wait_for(lambda: _address(contact))
        logs = [folder / f"worker-{number}.log" for number in range(workers)]
        words = ("--nthreads", "1", "--no-nanny", "--local-directory", folder)
        started = [stack.enter_context(_process("dask_worker", log, address, *words)) for log in logs]
        _wait_for(lambda: all("Registered to" in log.read_text() for log in logs) or None)
        yield Cluster(address, scheduler, tuple(started))
        # All at once, workers first: each takes its time to say goodbye.
        for process in (*started, scheduler):
            process.terminate()


@contextmanager
def _process(command: str, log: Path, *arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    words = [sys.executable, "-m", f"distributed.cli.{command}", "--host", "127.0.0.1", "--no-dashboard"]
    words += ["--dashboard-address", "127.0.0.1:0"]  # a port of its own for its HTTP server too
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with log.open("wb") as file:
        running = subprocess.Popen(
            [*words, *map(str, arguments)], stdout=file, stderr=subprocess.STDOUT, env=environment
        )
    try:
        yield running
    finally:
        running.terminate()
        try:
            running.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def _address(contact: Path) -> str | None:
    try:
        return str(json.loads(contact.read_text())["address"])
    except (OSError, ValueError):
        return None  # not written yet, or half of it


def _wait_for(look: Callable[[], Found | None]) -> Found:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (found := look()) is None:
        assert time.monotonic() < deadline, "the cluster did not start"
        time.sleep(0.05)
    return found
