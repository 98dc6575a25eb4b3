"""What a run finds at the target's place, and when it must not write there."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from output_builders import tensors, write_model

from mergeflow.errors import OutputError
from mergeflow.output.lock import LOCK_FILE, lock_json
from mergeflow.output.target import inspect_target

MODEL = tensors("abc")


def later_than_the_lock(folder: Path) -> tuple[int, int]:
    """Times for os.utime, a second after the lock was written."""
    moment = (folder / LOCK_FILE).stat().st_mtime_ns + 10**9
    return moment, moment


def test_an_absent_target_may_be_written_and_looking_creates_nothing(tmp_path: Path) -> None:
    """A place with nothing there, even deep below what exists, is absent; looking leaves no trace."""
    target = inspect_target(tmp_path / "deep" / "er" / "model")
    assert (target.kind, target.path) == ("absent", tmp_path / "deep" / "er" / "model")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_may_be_written(tmp_path: Path) -> None:
    """An empty folder is nobody's work."""
    assert inspect_target(tmp_path).kind == "empty"


def test_an_earlier_output_is_ours_with_its_lock_and_shards(tmp_path: Path) -> None:
    """A folder that a run wrote is recognised, with every shard intact and nothing to warn of."""
    published = write_model(tmp_path / "model", MODEL)
    target = inspect_target(tmp_path / "model")
    assert (target.kind, target.lock, target.warnings) == ("ours", published.lock, ())
    assert target.intact == published.lock.shards


def test_a_link_to_a_folder_is_resolved(tmp_path: Path) -> None:
    """The target may be a link: what it leads to is written, and staged beside the real folder."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "model")
    target = inspect_target(tmp_path / "link")
    assert target.path == tmp_path / "disk" / "model"
    assert target.staging == tmp_path / "disk" / ".model.mergeflow"


@pytest.mark.parametrize("content", ["file", "folder"])
def test_a_folder_that_is_not_ours_is_refused(tmp_path: Path, content: str) -> None:
    """A folder with anything in it but no lock is refused; the message says what to do."""
    (tmp_path / "notes.txt").touch() if content == "file" else (tmp_path / "sub").mkdir()
    with pytest.raises(OutputError, match=r"did not write.*choose another folder, or remove this one"):
        inspect_target(tmp_path)


def test_a_file_is_refused(tmp_path: Path) -> None:
    """A target that is a file is an error that says so."""
    (tmp_path / "model").write_text("mine")
    with pytest.raises(OutputError, match="is a file"):
        inspect_target(tmp_path / "model")


def test_a_place_below_a_file_is_refused(tmp_path: Path) -> None:
    """A target whose parent is a file cannot be created, and that is said before work starts."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="not a folder"):
        inspect_target(tmp_path / "file" / "deep" / "model")


def test_a_mount_point_is_refused_with_a_place_that_works(tmp_path: Path) -> None:
    """A mount point (here: the root) cannot be renamed; the message names a folder in it."""
    with pytest.raises(OutputError, match=r"mount point.*model"):
        inspect_target("/")


def test_a_parent_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No permission in the parent folder is noticed before work starts (asked of the system: root always has it)."""
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(OutputError, match=f"no permission to create folders in {tmp_path}"):
        inspect_target(tmp_path / "deep" / "model")


def test_a_damaged_lock_is_refused(tmp_path: Path) -> None:
    """A folder whose lock cannot be read may be somebody's only copy: it is not replaced."""
    write_model(tmp_path / "model", MODEL)
    (tmp_path / "model" / LOCK_FILE).write_text("{")
    with pytest.raises(OutputError, match="cannot be used"):
        inspect_target(tmp_path / "model")


@pytest.mark.parametrize(
    "name", ["model.safetensors", "model-00009-of-00009.safetensors", "model.safetensors.index.json"]
)
def test_strange_weights_in_our_folder_are_refused(tmp_path: Path, name: str) -> None:
    """Weights that somebody put beside ours under a name that loaders read would be mixed with them."""
    single = name.endswith("index.json")
    write_model(tmp_path / "model", MODEL, limit=0 if single else 128)
    (tmp_path / "model" / name).write_text("mine")
    with pytest.raises(OutputError, match=name):
        inspect_target(tmp_path / "model")


def test_a_shard_of_a_lock_without_samples_is_not_intact(tmp_path: Path) -> None:
    """A lock that states nothing of a shard's bytes vouches for none: it is rebuilt, and the warning says why."""
    folder = tmp_path / "model"
    lock = write_model(folder, MODEL).lock
    before = (folder / LOCK_FILE).stat().st_mtime_ns
    (folder / LOCK_FILE).write_text(lock_json(replace(lock, samples={})))
    os.utime(folder / LOCK_FILE, ns=(before, before))

    target = inspect_target(folder)
    assert target.intact == ()
    assert ["has no sample" in warning for warning in target.warnings] == [True, True]


def test_a_moved_or_copied_output_is_recognised(tmp_path: Path) -> None:
    """Moved, or copied with its times, a folder is what its lock says, and nothing is warned of."""
    write_model(tmp_path / "model", MODEL)
    (tmp_path / "model").rename(tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", tmp_path / "copied")
    for name in ("moved", "copied"):
        target = inspect_target(tmp_path / name)
        assert (len(target.intact), target.warnings) == (2, ())


def test_shards_that_somebody_changed_are_not_intact_and_warned_of(tmp_path: Path) -> None:
    """Removed, cut, given another header, replaced by a link, or merely younger than the lock: not what we wrote."""
    folder = tmp_path / "model"
    lock = write_model(folder, tensors("abcdefgh"), limit=64).lock
    paths = [folder / shard.file for shard in lock.shards]
    paths[0].unlink()
    os.truncate(paths[1], 10)
    with paths[2].open("rb+") as file:
        file.seek(20)
        file.write(b"#")
    os.utime(paths[2], ns=(0, 0))
    paths[3].rename(tmp_path / "elsewhere")
    paths[3].symlink_to(tmp_path / "elsewhere")
    os.utime(paths[4], ns=later_than_the_lock(folder))

    target = inspect_target(folder)
    assert [shard.file for shard in target.intact] == [path.name for path in paths[5:]]
    assert len(target.warnings) == 5
    assert all("was changed or removed" in warning for warning in target.warnings)
