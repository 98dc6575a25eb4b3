"""Patching in place: only what changes is written, and whatever is interrupted is finished or was never begun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from output_builders import (
    FILES,
    LOCK,
    FailingDisk,
    NewFile,
    UnsyncedDisk,
    WatchedDisk,
    expected_tensors,
    read_tensors,
    shards_of,
    snapshot,
    states,
    tensors,
    write_model,
    write_places,
)

from mergeflow.errors import OutputError, RunError
from mergeflow.output.compare import bytes_to_write
from mergeflow.output.layout import plan_shards
from mergeflow.output.lock import read_lock
from mergeflow.output.patch_record import (
    PATCH_RECORD,
    Patch,
    ShardPatch,
    Write,
    patch_json,
    read_patch,
)
from mergeflow.output.sample import sample_digest
from mergeflow.output.staging import open_staging
from mergeflow.output.target import inspect_target

OLD = tensors("abcdef")
NEW = tensors({"a": "a", "b": "b", "c": "c", "d": "new", "e": "x", "f": "f"})
KILLING_RUNS = Path(__file__).with_name("killing_runs.py")


def inodes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.glob("*.safetensors")}


def staging_of(folder: Path) -> Path:
    return inspect_target(folder).staging


class HalfDisk(UnsyncedDisk):
    """A disk that fails after half of the writes of a patch, and half of the bytes of the next one."""

    def patch(self, source: Path, path: Path, writes: Sequence[Write]) -> None:
        done, cut = writes[: len(writes) // 2], writes[len(writes) // 2]
        super().patch(source, path, [*done, replace(cut, nbytes=cut.nbytes // 2)])
        raise OSError(5, os.strerror(5))


def test_the_shards_stay_the_files_they_are(tmp_path: Path) -> None:
    """Patched or kept, each shard is the same file with the bytes of a new output; so are lock and small files."""
    folder = tmp_path / "model"
    write_model(folder, OLD)
    before = inodes(folder)
    published = write_model(folder, NEW, patch=True)
    write_model(tmp_path / "usual", NEW)

    assert inodes(folder) == before
    assert published.changed
    assert snapshot(folder) == snapshot(tmp_path / "usual")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert len(inspect_target(folder).intact) == 3


def test_only_what_changes_is_written(tmp_path: Path) -> None:
    """A changed tensor of 64 bytes costs 64 bytes of a patch, wherever in its shard it lies."""
    write_model(tmp_path / "model", OLD, limit=0)
    with open_staging(tmp_path / "model", plan_shards(NEW, 0), UnsyncedDisk(), patch=True) as staging:
        assert states(staging) == ["patched"]
        assert [place.tensor.name for place in staging.works[0].places] == ["d", "e"]
        assert bytes_to_write(staging.works) == 128


def test_the_folder_is_untouched_until_the_patch_is_complete(tmp_path: Path) -> None:
    """A run that computes its patch and then fails leaves the earlier output as it was, times included."""
    folder = tmp_path / "model"
    write_model(folder, OLD)
    before, times = snapshot(folder), {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    with open_staging(folder, plan_shards(NEW, 128), UnsyncedDisk(), patch=True) as staging:
        write_places(staging)
    assert snapshot(folder) == before
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == times


def test_complete_patches_are_used_by_the_next_run(tmp_path: Path) -> None:
    """What an interrupted run had completed of a patch is not computed again, and the same patch only."""
    folder = tmp_path / "model"
    write_model(folder, OLD)
    with open_staging(folder, plan_shards(NEW, 128), UnsyncedDisk(), patch=True) as staging:
        write_places(staging)
    with open_staging(folder, plan_shards(NEW, 128), UnsyncedDisk(), patch=True) as staging:
        assert bytes_to_write(staging.works) == 0
    other = tensors({"a": "a", "b": "b", "c": "c", "d": "other", "e": "x", "f": "f"})
    with open_staging(folder, plan_shards(other, 128), UnsyncedDisk(), patch=True) as staging:
        assert bytes_to_write(staging.works) == 64
    write_model(folder, other, patch=True)
    assert read_tensors(folder) == expected_tensors(other)


def link_a_shard(folder: Path) -> None:
    os.link(folder / "model-00002-of-00003.safetensors", folder.parent / "other-name")


def change_a_shard(folder: Path) -> None:
    path = folder / "model-00001-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")


@pytest.mark.parametrize(
    ("prepare", "planned", "limit", "reason"),
    [
        (link_a_shard, NEW, 128, "second name"),
        (change_a_shard, NEW, 128, "changed or removed"),
        (lambda folder: None, NEW, 0, "other files"),
        (lambda folder: None, tensors({**dict.fromkeys("abcde", "1"), "g": "g"}), 128, "laid out in another way"),
    ],
    ids=["hard link", "edited", "other shards", "other tensors"],
)
def test_where_the_layout_changes_it_is_done_in_the_usual_way(
    tmp_path: Path, prepare: Callable[[Path], None], planned: tuple[object, ...], limit: int, reason: str
) -> None:
    """What cannot be patched is rebuilt, the reason is said, and another name of a shard keeps its bytes."""
    folder = tmp_path / "model"
    write_model(folder, OLD)
    prepare(folder)
    linked = tmp_path / "other-name"
    content = linked.read_bytes() if linked.exists() else None
    with open_staging(folder, plan_shards(planned, limit), UnsyncedDisk(), patch=True) as staging:
        assert reason in str(staging.why_not_in_place)
        assert "patched" not in states(staging)
    write_model(folder, planned, limit, patch=True)
    assert read_tensors(folder) == expected_tensors(planned)
    assert content is None or linked.read_bytes() == content


def test_a_shard_linked_at_the_last_moment_is_not_patched(tmp_path: Path) -> None:
    """A second name given while the patch was computed ends the run before anything is decided."""
    folder = tmp_path / "model"
    write_model(folder, OLD)
    before = snapshot(folder)

    def link(count: int, operation: str, arguments: tuple[object, ...]) -> None:
        if (
            operation == "write"
            and str(arguments[0]).endswith("config.json")
            and not (tmp_path / "other-name").exists()
        ):
            link_a_shard(folder)

    with pytest.raises(OutputError, match="second name"):
        write_model(folder, NEW, disk=WatchedDisk(link), patch=True)
    assert snapshot(folder) == before


def test_what_users_put_there_stays(tmp_path: Path) -> None:
    """Notes stay, an edited file of ours is kept as .bak, and files of ours that the new version lacks go."""
    folder = tmp_path / "model"
    write_model(folder, OLD, files=(*FILES, NewFile("old.txt", b"old"), NewFile("kept.txt", b"k")))
    (folder / "notes.txt").write_text("mine")
    (folder / "README.md").write_text("edited")
    (folder / "kept.txt").write_text("edited too")
    published = write_model(folder, NEW, patch=True)
    found = snapshot(folder)
    assert found["notes.txt"] == b"mine"
    assert (found["README.md.bak"], found["README.md"]) == (b"edited", b"# merged\n")
    assert found["kept.txt"] == b"edited too"
    assert "old.txt" not in found
    assert any("README.md.bak" in warning for warning in published.warnings)


@pytest.mark.parametrize("stays", [False, True], ids=["fails once", "stays full"])
def test_when_any_operation_fails(tmp_path: Path, stays: bool) -> None:
    """A full disk at any operation: old, new, or recognisably between the two, and then the next run ends it."""
    write_model(tmp_path / "wanted", NEW)
    wanted, failed, number, between = snapshot(tmp_path / "wanted"), set(), 0, 0
    while True:
        number += 1
        folder = tmp_path / str(number) / "model"
        write_model(folder, OLD)
        old = snapshot(folder)
        disk = FailingDisk(number, stays)
        try:
            write_model(folder, NEW, disk=disk, patch=True)
        except (OutputError, RunError) as error:
            assert "No space left" in str(error)  # noqa: PT017 - where nothing failed, nothing is raised
        found = snapshot(folder)
        if found not in (old, wanted):
            assert read_lock(folder) is None
            assert "between two versions" in inspect_target(folder).warnings[0]
            between += 1
        if not disk.failed:
            break
        failed.add(disk.failed)
        write_model(folder, NEW, patch=True)
        assert snapshot(folder) == wanted
        assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert failed >= {"create_shard", "write", "append", "rename", "sync", "patch", "remove"}
    assert between >= 3


@pytest.mark.parametrize("patch", [True, False])
@pytest.mark.parametrize("limit", [128, 0])
def test_half_a_patch_is_finished_by_any_run(tmp_path: Path, patch: bool, limit: int) -> None:
    """Cut in the middle of writing over a shard: a run of another recipe finishes the patch and then does its own."""
    folder = tmp_path / "model"
    write_model(folder, OLD, limit)
    with pytest.raises(RunError, match="between two versions"):
        write_model(folder, NEW, limit, disk=HalfDisk(), patch=True)
    assert read_lock(folder) is None
    assert inspect_target(folder).lock is not None

    third = tensors({"a": "third", "b": "b", "c": "c", "d": "new", "e": "x", "f": "f"})
    with open_staging(folder, plan_shards(third, limit), UnsyncedDisk(), patch=patch) as staging:
        assert read_tensors(folder) == expected_tensors(NEW)
        assert [place.tensor.name for work in staging.works for place in work.places if not place.copy_from] == ["a"]
    write_model(folder, third, limit, patch=patch)
    assert read_tensors(folder) == expected_tensors(third)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_cannot_be_finished_says_what_to_do(tmp_path: Path) -> None:
    """A shard replaced in the middle of a patch is not written over; without the folder, a run starts anew."""
    folder = tmp_path / "model"
    write_model(folder, OLD)
    with pytest.raises(RunError):
        write_model(folder, NEW, disk=HalfDisk(), patch=True)
    shard = folder / "model-00002-of-00003.safetensors"
    shard.rename(tmp_path / "away")
    shard.write_bytes((tmp_path / "away").read_bytes())
    with pytest.raises(OutputError, match="was replaced while .* was being patched: remove "):
        write_model(folder, NEW)
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()
    (folder / "1_Pooling" / "config.json").unlink()
    (folder / "1_Pooling").rmdir()
    folder.rmdir()
    write_model(folder, NEW)
    assert read_tensors(folder) == expected_tensors(NEW)


def test_killed_at_any_operation(tmp_path: Path) -> None:
    """SIGKILL before any operation: old, new or between the two, and a rerun ends with the bytes of a usual run."""
    command = [sys.executable, str(KILLING_RUNS), str(tmp_path), "in-place", "earlier"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["kills"] > 20
    assert set(report["found"]) == {"old", "between", "new"}
    assert set(report["after_rerun"]) == {"new"}
    assert report["leftovers"] == []
    assert report["rebuilt_twice"] <= 1


def test_everything_is_on_the_disk_before_the_patch_is_decided(tmp_path: Path) -> None:
    """Patches, small files and lock are synced before the record has its name; shards before the new lock has its."""
    operations: list[tuple[str, str]] = []

    def note(count: int, operation: str, arguments: tuple[object, ...]) -> None:
        operations.append((operation, Path(str(arguments[0])).name))

    write_model(tmp_path / "model", OLD, limit=0)
    write_model(tmp_path / "model", NEW, limit=0, disk=WatchedDisk(note), patch=True)
    order = [
        ("sync", "config.json"),
        ("sync", "next"),
        ("sync", f"{PATCH_RECORD}.fresh"),
        ("rename", f"{PATCH_RECORD}.fresh"),
        ("sync", ".model.mergeflow"),
        ("rename", "mergeflow.lock.json"),
        ("patch", "model.safetensors.patch"),
        ("sync", "model.safetensors"),
        ("rename", "applied.mergeflow.lock.json"),
        ("remove", PATCH_RECORD),
    ]
    assert sorted(order, key=operations.index) == order


def test_the_sample_of_a_patched_shard_is_that_of_its_bytes(tmp_path: Path) -> None:
    """What the lock states of a patched shard is what a look at it finds."""
    lock = write_model(tmp_path / "model", OLD).lock
    lock = write_model(tmp_path / "model", NEW, patch=True).lock
    for shard in lock.shards:
        assert sample_digest(tmp_path / "model" / shard.file, shard) == lock.samples[shard.file]


def test_a_changed_word_of_the_recipe_patches_nothing(tmp_path: Path) -> None:
    """Where no tensor changes, there is nothing to patch: the usual way copies no byte either."""
    write_model(tmp_path / "model", OLD)
    before = inodes(tmp_path / "model")
    write_model(tmp_path / "model", OLD, lock=replace(LOCK, recipe="# other words\n"), patch=True)
    assert inodes(tmp_path / "model") == before
    with open_staging(tmp_path / "model", shards_of("abcdef"), UnsyncedDisk(), patch=True) as staging:
        assert staging.why_not_in_place is None


RECORD = {"format": 1, "shards": [{"file": "m", "inode": 1, "size": 10, "writes": [[0, 2, 8]]}], "files": ["a/b"]}


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    """The record of a patch comes back the same; where there is none, there is none."""
    patch = Patch((ShardPatch("m.safetensors", 3, 100, (Write(0, 10, 90),)),), ("a/b.json",), ("c",))
    assert read_patch(tmp_path) is None
    (tmp_path / PATCH_RECORD).write_bytes(patch_json(patch))
    assert read_patch(tmp_path) == patch


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        json.dumps({**RECORD, "removed": ["../out"]}),
        json.dumps({**RECORD, "removed": ["/etc/passwd"]}),
        json.dumps({**RECORD, "removed": [""]}),
        json.dumps({**RECORD, "removed": [], "files": [3]}),
        json.dumps({**RECORD, "removed": [], "format": 2}),
        json.dumps({**RECORD, "removed": []}).replace("[0, 2, 8]", "[0, 3, 8]"),
        json.dumps({**RECORD, "removed": []}).replace("[0, 2, 8]", "[0, -1, 8]"),
        json.dumps({**RECORD, "removed": []}).replace("[0, 2, 8]", "[0, 2]"),
        json.dumps({**RECORD, "removed": []}).replace('"m"', '"../m"'),
        json.dumps({**RECORD, "removed": []}).replace('"m"', '"a/m"'),
    ],
)
def test_a_damaged_record_is_one_clear_error(tmp_path: Path, content: str) -> None:
    """Whatever stands in a record: it names places inside the folder and inside the shards, or it is refused."""
    (tmp_path / PATCH_RECORD).write_text(content)
    with pytest.raises(OutputError, match=PATCH_RECORD):
        read_patch(tmp_path)
