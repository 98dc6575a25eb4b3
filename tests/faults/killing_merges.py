"""Run a merge again and again, killed with SIGKILL at a random moment or at its n-th event, and look at what is left.

usage: killing_merges.py FOLDER KILLS SCENARIO

FOLDER holds the models, recipe.yaml, and earlier.yaml (another recipe for the same outputs). SCENARIO is one of

    usual       every second output is not there yet, the others are earlier ones
    in-place    earlier outputs are patched where they are
    edited      the run after the kill is of another recipe, after.yaml

Each run is a fork of this process, which has imported what a run needs and started no thread. Prints one JSON object for
each kill: when it came, what was found under each output's name (absent, earlier, new, between two versions or a
mixture), which files had been completed for it, and what the next run made of them.
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
from typing import Any

import dask.threaded  # noqa: F401
from three_steps import options
from tiny_checkpoints import raw_bytes

import mergeflow
import mergeflow.execute.task
import mergeflow.workflow.running
from mergeflow.execute.events import Event
from mergeflow.output.journal import JOURNAL_FILE, read_journal
from mergeflow.output.target import is_between_versions

States = dict[str, dict[str, dict[str, bytes]]]


@dataclass(frozen=True)
class Scenario:
    """What is done, how long a run that nobody kills takes, and how many events it has."""

    name: str
    seconds: float
    events: int
    states: States

    @property
    def after(self) -> str:
        """The recipe of the run after the kill."""
        return "after" if self.name == "edited" else "recipe"

    def starts_from_earlier(self, number: int) -> bool:
        return self.name == "in-place" or number % 2 == 1


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


def merge(folder: Path, place: Path, recipe: str, in_place: bool = False, at_event: int | None = None) -> None:
    """One run into `place`/out, with the cache of `place`; leaves its report there, and dies at event `at_event`."""
    count = 0

    def listen(event: Event) -> None:
        nonlocal count
        count += 1
        if count == at_event:
            os.kill(os.getpid(), signal.SIGKILL)

    how = options(folder, cache=place / "cache", in_place=in_place)
    report = mergeflow.run(folder / f"{recipe}.yaml", place / "out", options=how, listen=listen)
    content = {
        "shards": {output.step: dict(output.shards) for output in report.outputs},
        "written": report.bytes.written,
        "events": count,
        "sizes": {
            output.step: {path.name: path.stat().st_size for path in Path(output.path).glob("*.safetensors")}
            for output in report.outputs
        },
    }
    (place / "report.json").write_text(json.dumps(content))


def outputs(place: Path, names: list[str]) -> dict[str, Path]:
    return {name: place / "out" / name if len(names) > 1 else place / "out" for name in names}


def state_of(path: Path, states: dict[str, dict[str, bytes]]) -> str:
    """Which of `states` a folder is in."""
    content = raw_bytes(path) if path.exists() else {}
    found = next((name for name, expected in states.items() if content == expected), None)
    return found or ("between" if is_between_versions(path) else "mixture")


def completed(path: Path) -> list[str]:
    staging = path.parent / f".{path.name}.mergeflow"
    return sorted(read_journal(staging / JOURNAL_FILE, staging / "next").values())


def one_kill(folder: Path, scenario: Scenario, number: int, draw: random.Random) -> dict[str, object]:
    """Start a run, kill it, look, and run again."""
    place = folder / f"kill-{number}"
    place.mkdir()
    if scenario.starts_from_earlier(number):
        shutil.copytree(folder / "made-earlier" / "out", place / "out", copy_function=shutil.copy2)
    # Most of the time passes between few events, and most events in little time: draw both kinds of moment.
    at_event = draw.randrange(scenario.events) + 1 if number % 4 >= 2 else None
    kill_after = None if at_event else draw.uniform(0.0, scenario.seconds)
    in_place = scenario.name == "in-place"
    killed = forked(lambda: merge(folder, place, "recipe", in_place, at_event), kill_after)
    folders = outputs(place, list(scenario.states))
    found = {name: state_of(path, scenario.states[name]) for name, path in folders.items()}
    complete = {name: completed(path) for name, path in folders.items()}
    forked(lambda: merge(folder, place, scenario.after, in_place))
    inside = {path.name for path in place.rglob(".*.mergeflow")}
    return {
        "killed": killed,
        "at_event": at_event,
        "had_earlier": scenario.starts_from_earlier(number),
        "found": found,
        "complete": complete,
        "after_rerun": {name: state_of(path, scenario.states[name]) for name, path in folders.items()},
        "leftovers": sorted(inside),
        "report": json.loads((place / "report.json").read_text()),
    }


def prepare(folder: Path, name: str) -> Scenario:
    """Run every recipe once, undisturbed, and once more what is going to be killed."""
    states: States = {}
    for recipe in ("earlier", "recipe", *(["after"] if name == "edited" else [])):
        report, _ = undisturbed(folder, folder / f"made-{recipe}", recipe)
        for step, path in outputs(folder / f"made-{recipe}", list(report["shards"])).items():
            states.setdefault(step, {"absent": {}})["new" if recipe == "recipe" else recipe] = raw_bytes(path)
    report, seconds = undisturbed(folder, folder / "usual", "recipe", in_place=name == "in-place")
    return Scenario(name, seconds, report["events"], states)


def undisturbed(folder: Path, place: Path, recipe: str, in_place: bool = False) -> tuple[dict[str, Any], float]:
    """The report of a run that nobody kills, and its seconds; in place, it is one over the earlier output."""
    place.mkdir()
    if in_place:
        shutil.copytree(folder / "made-earlier" / "out", place / "out", copy_function=shutil.copy2)
    began = time.perf_counter()
    assert not forked(lambda: merge(folder, place, recipe, in_place))
    return json.loads((place / "report.json").read_text()), time.perf_counter() - began


def main(folder: Path, kills: int, name: str) -> None:
    scenario = prepare(folder, name)
    draw = random.Random(7)
    for number in range(kills):
        sys.stdout.write(json.dumps(one_kill(folder, scenario, number, draw)) + "\n")
        shutil.rmtree(folder / f"kill-{number}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
