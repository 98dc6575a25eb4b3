"""What is somebody's own in an earlier output, and what is not carried along."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from output_builders import LOCK, shards_of

from mergeflow.errors import RunError
from mergeflow.output import carry
from mergeflow.output.carry import carry_over
from mergeflow.output.disk import Disk


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """An earlier output and a new one, both empty so far."""
    for name in ("earlier", "fresh"):
        (tmp_path / name).mkdir()
    return tmp_path / "earlier", tmp_path / "fresh"


def test_shards_index_and_lock_of_the_earlier_output_stay_behind(folders: tuple[Path, Path]) -> None:
    """Even a changed shard is not carried: a loader would read it."""
    earlier, fresh = folders
    lock = replace(LOCK, shards=shards_of("abc"))
    for name in (*(shard.file for shard in lock.shards), "model.safetensors.index.json", "mergeflow.lock.json", "x"):
        (earlier / name).write_text("something")
    assert carry_over(earlier, lock, fresh, LOCK, Disk()) == {"x": "x"}
    assert os.listdir(fresh) == ["x"]


def test_pipes_and_sockets_are_carried_without_being_opened(folders: tuple[Path, Path]) -> None:
    """A pipe under a name of ours is not read (that would wait for ever); it keeps a name like any other file."""
    earlier, fresh = folders
    os.mkfifo(earlier / "config.json")
    lock = replace(LOCK, files={"config.json": "digest"})
    assert carry_over(earlier, lock, fresh, lock, Disk()) == {"config.json": "config.json.bak"}


def test_a_name_for_an_edit_is_one_that_neither_version_has(folders: tuple[Path, Path]) -> None:
    """The edited file's new name collides with nothing, carried before or after it."""
    earlier, fresh = folders
    for name in ("card", "card.bak", "card.bak2"):
        (earlier / name).write_text(name)
    lock = replace(LOCK, files={"card": "digest"})
    assert carry_over(earlier, lock, fresh, lock, Disk()) == {
        "card": "card.bak3",
        "card.bak": "card.bak",
        "card.bak2": "card.bak2",
    }
    assert (fresh / "card.bak3").read_text() == "card"


def test_done_paths_are_passed_over(folders: tuple[Path, Path]) -> None:
    """A second round links latecomers only."""
    earlier, fresh = folders
    (earlier / "early").touch()
    done = carry_over(earlier, LOCK, fresh, LOCK, Disk())
    (earlier / "late").touch()
    assert carry_over(earlier, LOCK, fresh, LOCK, Disk(), done) == {"late": "late"}


def test_a_folder_on_another_file_system_is_refused(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is mounted below an earlier output can be neither linked nor removed with it: an error, before either."""
    earlier, fresh = folders
    (earlier / "mounted").mkdir()
    monkeypatch.setattr(carry, "_device", lambda path: 1 if path.name == "mounted" else 2)
    with pytest.raises(RunError, match="mounted is on another file system"):
        carry_over(earlier, LOCK, fresh, LOCK, Disk())
