"""A disk that fails at any point: the old output is whole, or the new one is, and the next run succeeds.

Every operation of the room goes through a `Disk`, so "any point" is counted, not guessed: the n-th operation fails,
for every n until a run gets through.
"""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from output_builders import (
    LOCK,
    ExchangelessDisk,
    FailingDisk,
    FailingExchangelessDisk,
    WatchedDisk,
    expected_tensors,
    read_tensors,
    snapshot,
    tensors,
    write_model,
)

from mergeflow.errors import OutputError, RunError

OLD, NEW = tensors("abcdef"), tensors({"a": "a", "b": "b", "c": "c", "d": "new", "e": "e", "f": "f", "g": "g"})
KILLING_RUNS = Path(__file__).with_name("killing_runs.py")


def new_output(folder: Path) -> dict[str, bytes]:
    """What the new output looks like when nothing goes wrong."""
    write_model(folder, NEW)
    (folder / "notes.txt").write_text("mine")
    return snapshot(folder)


@pytest.mark.parametrize("stays", [False, True], ids=["fails once", "stays full"])
@pytest.mark.parametrize("kind", [FailingDisk, FailingExchangelessDisk], ids=["exchange", "two renames"])
def test_when_any_operation_fails_over_an_earlier_output(tmp_path: Path, kind: type[FailingDisk], stays: bool) -> None:
    """A full disk at any operation: our error, the target is the old or the new output in full, and a rerun works.

    Only where folders cannot be exchanged, and the rename back fails too, is the old output kept aside for the rerun.
    """
    wanted = new_output(tmp_path / "wanted")
    failed, said, number = set(), set(), 0
    while True:
        number += 1
        folder = tmp_path / str(number) / "model"
        write_model(folder, OLD)
        (folder / "notes.txt").write_text("mine")
        old = snapshot(folder)

        disk = kind(number, stays)
        try:
            write_model(folder, NEW, disk=disk)
        except (OutputError, RunError) as error:
            said.add("No space left" in str(error))
        found = snapshot(folder)
        aside = stays and kind is FailingExchangelessDisk and found == {} and disk.failed == "rename"
        assert aside or found in (old, wanted), f"operation {number} ({disk.failed}) left a mixture"
        if not disk.failed:
            break

        failed.add(disk.failed)
        write_model(folder, NEW)
        assert snapshot(folder) == wanted
        assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert said == {True}
    assert failed >= {"make_folder", "create_shard", "write", "append", "link", "rename", "exchange", "sync"}


def test_when_any_operation_fails_where_nothing_was(tmp_path: Path) -> None:
    """The same without an earlier output: no target at all, or a complete one, and a rerun works."""
    said, number = set(), 0
    while True:
        number += 1
        folder = tmp_path / str(number) / "deep" / "model"
        disk = FailingDisk(number)
        try:
            write_model(folder, NEW, disk=disk)
        except (OutputError, RunError) as error:
            said.add("No space left" in str(error))
        assert not folder.exists() or read_tensors(folder) == expected_tensors(NEW)
        if not disk.failed:
            break
        write_model(folder, NEW)
        assert read_tensors(folder) == expected_tensors(NEW)
        assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert number > 10
    assert said == {True}


def test_a_failure_before_anything_is_complete_leaves_nothing_behind(tmp_path: Path) -> None:
    """When preparing fails, not even the folders made for the output are left."""
    number = 0
    while True:
        number += 1
        disk = FailingDisk(number)
        try:
            write_model(tmp_path / "deep" / "er" / "model", NEW, disk=disk)
        except OutputError:
            assert list(tmp_path.iterdir()) == []
        except RunError:
            break
    assert disk.failed == "sync", "the first operation after preparing is the sync of the first complete shard"


@pytest.mark.parametrize("swap", ["exchange", "two-renames"])
@pytest.mark.parametrize("earlier", ["earlier", "none"])
def test_killed_at_any_operation(tmp_path: Path, swap: str, earlier: str) -> None:
    """SIGKILL before any operation: the target is old or new, whole; no complete shard is lost; a rerun is right.

    Where names cannot be exchanged there is one moment, between two renames, in which the target is absent.
    """
    command = [sys.executable, str(KILLING_RUNS), str(tmp_path), swap, earlier]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["kills"] > 20
    assert set(report["found"]) <= ({"old", "new", "absent"} if earlier == "earlier" else {"new", "absent"})
    if earlier == "earlier":
        assert report["found"].count("absent") == (1 if swap == "two-renames" else 0)
    assert set(report["after_rerun"]) == {"new"}
    assert report["leftovers"] == []
    assert report["rebuilt_twice"] <= 1


@pytest.mark.parametrize("failures", [2, 99])
def test_an_earlier_output_set_aside_is_never_removed(tmp_path: Path, failures: int) -> None:
    """Both renames and the way back fail: the old output is put back as soon as that works, and never thrown away."""
    folder = tmp_path / "model"
    write_model(folder, OLD)
    (folder / "notes.txt").write_text("mine")
    old = snapshot(folder)
    attempts = []

    class StuckDisk(ExchangelessDisk):
        def rename(self, source: Path, path: Path) -> None:
            if path == folder:
                attempts.append(source)
                if len(attempts) <= failures:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
            super().rename(source, path)

    reworded = replace(LOCK, recipe="# nothing but the words changed\n")
    with pytest.raises(RunError, match="Input/output error"):
        write_model(folder, OLD, lock=reworded, disk=StuckDisk())
    assert snapshot(folder) == (old if failures == 2 else {})

    write_model(folder, OLD, lock=reworded)
    assert {**snapshot(folder), "mergeflow.lock.json": b""} == {**old, "mergeflow.lock.json": b""}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_everything_is_on_the_disk_before_it_is_shown(tmp_path: Path) -> None:
    """A shard is synced before it has its name, files, lock and folder before the swap, the parent after it."""
    operations: list[tuple[str, str]] = []

    def note(count: int, operation: str, arguments: tuple[object, ...]) -> None:
        operations.append((operation, Path(str(arguments[0])).name))

    write_model(tmp_path / "model", OLD, limit=0)
    write_model(tmp_path / "model", NEW, limit=0, disk=WatchedDisk(note))

    synced = [name for operation, name in operations if operation == "sync"]
    assert re.fullmatch(r"model\.safetensors\.[0-9a-f]{8}\.partial", synced[0])
    assert sorted(synced[1:4]) == ["README.md", "config.json", "config.json"]
    assert synced[4:] == ["mergeflow.lock.json", "next", tmp_path.name]
    steps = [
        ("sync", synced[0]),
        ("rename", synced[0]),
        ("sync", "next"),
        ("exchange", "next"),
        ("sync", tmp_path.name),
    ]
    assert sorted(steps, key=operations.index) == steps


def test_the_run_lock_is_the_last_thing_removed(tmp_path: Path) -> None:
    """Until all else is gone the staging folder is held: a run that starts meanwhile loses nothing to the clearing."""
    removed: list[str] = []

    def note(count: int, operation: str, arguments: tuple[object, ...]) -> None:
        if operation.startswith("remove"):
            removed.append(Path(str(arguments[0])).name)

    write_model(tmp_path / "model", OLD)
    write_model(tmp_path / "model", NEW, disk=WatchedDisk(note))
    assert removed[-2:] == ["lock", ".model.mergeflow"]
    assert removed.count("lock") == 1
    assert {"next", "journal.jsonl"} <= set(removed[:-2])
