"""Run a merge again and again, killed with SIGKILL at a random moment or at its n-th event, and look at what is left.

usage: killing_merges.py FOLDER KILLS

FOLDER holds the models, recipe.yaml, and earlier.yaml (another recipe for the same output). Each run is a fork of this
process, which has imported what a run needs and started no thread. Prints one JSON object for each kill: when it came,
what was found under the output's name (absent, earlier, new or a mixture), which shards had been completed, and what
the next run made of them.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import dask.threaded  # noqa: F401
from three_steps import options
from tiny_checkpoints import raw_bytes

import mergeflow
import mergeflow.execute.task
import mergeflow.workflow.running
from mergeflow.execute.events import Event
from mergeflow.output.journal import JOURNAL_FILE, read_journal


@dataclass(frozen=True)
class Usual:
    """A run that nobody kills: how long it takes, and how many events it has."""

    seconds: float
    events: int


def forked(work: Callable[[], None], kill_after: float | None = None) -> bool:
    """Do `work` in a fork of this process, killing it after so many seconds; was it killed (or did it kill itself)?"""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def merge(folder: Path, place: Path, recipe: str = "recipe.yaml", at_event: int | None = None) -> None:
    """One run into `place`/out, with the cache of `place`; leaves its report there, and dies at event `at_event`."""
    count = 0

    def listen(event: Event) -> None:
        nonlocal count
        count += 1
        if count == at_event:
            os.kill(os.getpid(), signal.SIGKILL)

    how = options(folder, cache=place / "cache")
    report = mergeflow.run(folder / recipe, place / "out", options=how, listen=listen)
    content = {
        "shards": dict(report.outputs[0].shards),
        "written": report.bytes.written,
        "events": count,
        "sizes": {path.name: path.stat().st_size for path in (place / "out").glob("*.safetensors")},
    }
    (place / "report.json").write_text(json.dumps(content))


def one_kill(
    folder: Path, names: dict[str, object], number: int, usual: Usual, draw: random.Random
) -> dict[str, object]:
    """Start a run, kill it, look, and run again; every second one has an earlier output in its way."""
    place = folder / f"kill-{number}"
    place.mkdir()
    if number % 2:
        shutil.copytree(folder / "earlier" / "out", place / "out", copy_function=shutil.copy2)
    # Most of the time passes between few events, and most events in little time: draw both kinds of moment.
    at_event = draw.randrange(usual.events) + 1 if number % 4 >= 2 else None
    kill_after = None if at_event else draw.uniform(0.0, usual.seconds)
    killed = forked(lambda: merge(folder, place, at_event=at_event), kill_after)
    found = state_of(place / "out", names)
    staging = place / ".out.mergeflow"
    complete = sorted(read_journal(staging / JOURNAL_FILE, staging / "next").values())
    forked(lambda: merge(folder, place))
    return {
        "killed": killed,
        "at_event": at_event,
        "had_earlier": bool(number % 2),
        "found": found,
        "complete": complete if found != "new" else None,
        "after_rerun": state_of(place / "out", names),
        "leftovers": sorted(path.name for path in place.iterdir() if path.name not in ("out", "cache", "report.json")),
        "report": json.loads((place / "report.json").read_text()),
    }


def state_of(path: Path, names: dict[str, object]) -> str:
    content = raw_bytes(path) if path.exists() else {}
    return next((name for name, expected in names.items() if content == expected), "mixture")


def main(folder: Path, kills: int) -> None:
    for name, recipe in (("earlier", "earlier.yaml"), ("new", "recipe.yaml")):
        (folder / name).mkdir()
        began = time.perf_counter()
        assert not forked(lambda name=name, recipe=recipe: merge(folder, folder / name, recipe))
        seconds = time.perf_counter() - began
    usual = Usual(seconds, json.loads((folder / "new" / "report.json").read_text())["events"])
    names: dict[str, object] = {"absent": {}}
    names |= {name: raw_bytes(folder / name / "out") for name in ("earlier", "new")}
    draw = random.Random(7)
    for number in range(kills):
        sys.stdout.write(json.dumps(one_kill(folder, names, number, usual, draw)) + "\n")
        shutil.rmtree(folder / f"kill-{number}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
