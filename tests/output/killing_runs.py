"""Run an output again and again, killed with SIGKILL before its 1st, 2nd, 3rd ... operation on the disk.

usage: killing_runs.py FOLDER exchange|two-renames|in-place earlier|none

Each run is a fork of this small process (a test process with threads must not fork). Prints one JSON report:
kills, what was found under the target's name after each, what the next run made of it, and how many shards that had
been completed before a kill were written a second time, at most.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from output_builders import ExchangelessDisk, UnsyncedDisk, WatchedDisk, snapshot, tensors, write_model

from mergeflow.output.disk import Disk
from mergeflow.output.lock import LOCK_FILE
from mergeflow.output.target import inspect_target

PATCHED = tensors({"a": "a", "b": "b", "c": "c", "d": "new", "e": "e", "f": "x"})
OLD, NEW = tensors("abcdef"), tensors({"a": "a", "b": "b", "c": "c", "d": "new", "e": "e", "f": "x", "g": "g"})


def killing_disk(number: int, kind: type[Disk]) -> Disk:
    """A disk that kills this process before its operation `number`."""

    def kill(count: int, operation: str, arguments: tuple[object, ...]) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return type("KillingDisk", (WatchedDisk, kind), {})(kill)  # watches, then does what `kind` does


def counting_disk(counts: dict[str, int]) -> Disk:
    """A disk that counts its operations by name."""

    def count(_: int, operation: str, arguments: tuple[object, ...]) -> None:
        counts[operation] = counts.get(operation, 0) + 1

    return WatchedDisk(count)


def killed(run: Callable[[], object]) -> bool:
    """Do `run` in a fork of this process; was it killed?"""
    child = os.fork()
    if child == 0:
        run()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def state_of(target: Path, names: dict[str, object]) -> str:
    """What is at a place: one of `names`, the middle of a patch (a folder that says so), or a mixture."""
    content = snapshot(target)
    found = next((name for name, expected in names.items() if content == expected), None)
    if found is None and LOCK_FILE not in content and inspect_target(target).lock is not None:
        return "between"
    return found or "mixture"


def main(folder: Path, kind: type[Disk], with_earlier: bool, patch: bool) -> dict[str, object]:
    planned = PATCHED if patch else NEW

    def start(path: Path) -> Path:
        if with_earlier:
            write_model(path, OLD)
            (path / "notes.txt").write_text("mine")
        return path

    names = {"old": snapshot(start(folder / "old" / "model")) or None}
    write_model(start(folder / "new" / "model"), planned)
    names["new"] = snapshot(folder / "new" / "model")
    names["absent"] = {}

    found, after_rerun, leftovers, twice, number, alive = [], [], [], [], 0, False
    while not alive:
        number += 1
        target = start(folder / str(number) / "model")
        disk = killing_disk(number, kind)
        alive = not killed(partial(write_model, target, planned, disk=disk, patch=patch))
        found.append(state_of(target, names))

        pattern = "next/*.patch" if patch else "next/*.safetensors"
        complete = len(list((target.parent / ".model.mergeflow").glob(pattern)))
        counts: dict[str, int] = {}
        write_model(target, planned, disk=counting_disk(counts), patch=patch)
        after_rerun.append(state_of(target, names))
        leftovers += [path.name for path in target.parent.iterdir() if path != target]
        if found[-1] in ("old", "absent") and not alive:
            to_write = 2 if patch else 3 if with_earlier else 4
            twice.append(counts.get("create_shard", 0) - max(0, to_write - complete))
    return {
        "kills": number - 1,
        "found": found,
        "after_rerun": after_rerun,
        "leftovers": leftovers,
        "rebuilt_twice": max(twice),
    }


if __name__ == "__main__":
    chosen = ExchangelessDisk if sys.argv[2] == "two-renames" else UnsyncedDisk
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), chosen, sys.argv[3] == "earlier", sys.argv[2] == "in-place")))
