"""`run --in-place`, and what the commands say of a folder that is between two versions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from command_line import mergeflow, write
from recipes import LINEAR
from tiny_checkpoints import raw_bytes

from mergeflow.output.disk import Disk
from mergeflow.output.patch_record import Write

CHANGED = LINEAR.replace("weight: 3", "weight: [{filter: mlp, value: 4}, {value: 3}]")
SHARD = "model.safetensors"

pytestmark = pytest.mark.usefixtures("workplace")


def test_a_changed_parameter_is_patched_in(workplace: Path) -> None:
    """The shard stays the file it is and gets the bytes of a new output; without the flag it is another file."""
    assert mergeflow("run", write(LINEAR), "out").code == 0
    before = (workplace / "out" / SHARD).stat().st_ino
    done = mergeflow("run", write(CHANGED), "out", "--in-place")
    assert (done.code, done.err) == (0, "")
    assert (workplace / "out" / SHARD).stat().st_ino == before
    mergeflow("run", write(CHANGED), "fresh/out")
    assert raw_bytes(workplace / "out") == raw_bytes(workplace / "fresh" / "out")


def test_the_reason_against_it_is_one_line(workplace: Path) -> None:
    """Where it cannot be done the run is a usual one, exit code 0, with one warning."""
    assert mergeflow("run", write(LINEAR), "out").code == 0
    os.link(workplace / "out" / SHARD, workplace / "backup")
    done = mergeflow("run", write(CHANGED), "out", "--in-place", "--quiet")
    assert done.code == 0
    [line] = done.lines
    assert "is not patched in place" in line
    assert "hard link" in line


def test_a_folder_between_two_versions_says_so(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a patch that broke off: plan reads what it will be, verify and lineage refuse, the next run ends it."""
    assert mergeflow("run", write(LINEAR), "out").code == 0

    def fail(disk: Disk, source: Path, path: Path, writes: Sequence[Write]) -> None:
        raise OSError(5, os.strerror(5))

    with monkeypatch.context() as patched:
        patched.setattr(Disk, "patch", fail)
        done = mergeflow("run", write(CHANGED), "out", "--in-place", "--quiet")
        assert done.code == 3
        assert "between two versions" in done.err
    assert not (workplace / "out" / "mergeflow.lock.json").exists()
    assert mergeflow("plan", write(CHANGED), "out").code == 0
    for command in ("verify", "lineage"):
        done = mergeflow(command, "out")
        assert done.code == 1
        assert "between two versions" in done.err
    assert mergeflow("run", write(CHANGED), "out").code == 0
    assert mergeflow("verify", "out").code == 0
    assert [path.name for path in workplace.iterdir() if path.name.endswith(".mergeflow")] == []
