"""The staging folder: taken by one run, cleared of what is stale, kept when it holds complete shards."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
from output_builders import (
    FILES,
    LOCK,
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
from mergeflow.output.copies import copy_run, copy_runs
from mergeflow.output.layout import plan_shards
from mergeflow.output.publish import publish
from mergeflow.output.staging import Staging, abandon, complete_shard, open_staging, prepare


def complete_first(staging: Staging, count: int) -> None:
    """Write and complete only the first `count` shards."""
    write_places(replace(staging, works=staging.works[:count]))


def test_prepare_creates_partial_files_with_their_headers(tmp_path: Path) -> None:
    """Each shard to be rebuilt exists at its full size, header in place, data all zeros; the target is untouched."""
    shards = shards_of("abc")
    with open_staging(tmp_path / "model", shards) as staging:
        for shard in shards:
            content = (staging.folder / f"{shard.file}.{staging.token}.partial").read_bytes()
            assert content == shard.header + bytes(shard.data_bytes)
        assert not (tmp_path / "model").exists()


def test_a_place_points_into_the_partial_file(tmp_path: Path) -> None:
    """Bytes written at a tensor's place are what the completed shard holds under its name."""
    with open_staging(tmp_path / "model", shards_of("abc")) as staging:
        write_places(staging)
        assert read_tensors(staging.next) == expected_tensors(tensors("abc"))


def test_a_run_that_completed_nothing_leaves_nothing(tmp_path: Path) -> None:
    """Abandoned before a shard is complete: staging folder and the parents made for it are gone again."""
    with open_staging(tmp_path / "deep" / "er" / "model", shards_of("abc")):
        assert (tmp_path / "deep" / "er").is_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_somebody_used_meanwhile_stays(tmp_path: Path) -> None:
    """Only empty folders are taken away again."""
    with open_staging(tmp_path / "deep" / "model", shards_of("abc")):
        (tmp_path / "deep" / "notes.txt").touch()
    assert (tmp_path / "deep" / "notes.txt").exists()


def test_complete_shards_survive_and_are_used_by_the_next_run(tmp_path: Path) -> None:
    """After an interrupted run, the next one writes only what is missing, and the result is whole."""
    shards = shards_of("abcdef")
    first = prepare(tmp_path / "model", shards)
    complete_first(first, 2)
    done = {path.name: path.stat().st_ino for path in first.next.iterdir()}
    assert abandon(first) is True
    assert list(first.folder.glob("*.partial")) == []

    with open_staging(tmp_path / "model", shards) as staging:
        assert states(staging) == ["resumed", "resumed", "rebuilt"]
        write_places(staging)
        publish(staging, FILES, LOCK)
    assert read_tensors(tmp_path / "model") == expected_tensors(tensors("abcdef"))
    assert {name: (tmp_path / "model" / name).stat().st_ino for name in done} == done


def test_a_shard_resumed_twice_is_still_resumed(tmp_path: Path) -> None:
    """Two interrupted runs in a row lose nothing, even when the journal's last line was cut off by the first."""
    shards = shards_of("abcdef")
    for count in (1, 2):
        staging = prepare(tmp_path / "model", shards)
        complete_first(staging, count)
        abandon(staging)
        with (staging.folder / "journal.jsonl").open("ab") as journal:
            journal.write(b'{"file": "model-0')

    with open_staging(tmp_path / "model", shards) as staging:
        assert states(staging) == ["resumed", "resumed", "rebuilt"]


def test_completed_shards_of_another_plan_are_cleared(tmp_path: Path) -> None:
    """What no longer belongs to the plan is removed before work starts, whatever it is."""
    first = prepare(tmp_path / "model", shards_of("abcd"))
    complete_first(first, 2)
    (first.folder / "junk").mkdir()
    (first.folder / "link").symlink_to(tmp_path)
    abandon(first)

    with open_staging(tmp_path / "model", shards_of("xyzw")) as staging:
        assert states(staging) == ["rebuilt", "rebuilt"]
        assert sorted(path.name for path in staging.folder.iterdir()) == [
            "journal.jsonl", "lock", f"model-00001-of-00002.safetensors.{staging.token}.partial",
            f"model-00002-of-00002.safetensors.{staging.token}.partial", "next",
        ]  # fmt: skip
        assert list(staging.next.iterdir()) == []
    assert tmp_path.is_dir()


def test_a_completed_shard_that_was_replaced_does_not_count(tmp_path: Path) -> None:
    """The journal names a file by identity: another file under the same name is not what was completed."""
    shards = shards_of("abcd")
    first = prepare(tmp_path / "model", shards)
    complete_first(first, 1)
    abandon(first)
    [done] = first.next.iterdir()
    other = tmp_path / "other"
    other.write_bytes(done.read_bytes())
    other.rename(done)

    with open_staging(tmp_path / "model", shards) as staging:
        assert states(staging) == ["rebuilt", "rebuilt"]


def test_a_task_of_an_earlier_run_cannot_reach_the_next_runs_files(tmp_path: Path) -> None:
    """What a run was told to write to is gone once the next run holds the folder: not its path, nor what it had open.

    The first run is killed (its lock is let go, nothing is cleared) while a task of it is still at work.
    """
    shards = shards_of("abc")
    killed = prepare(tmp_path / "model", shards)
    killed.run_lock.close()
    places = [place for work in killed.works for place in work.places]
    with places[0].extent.file.open("rb+") as stale, open_staging(tmp_path / "model", shards) as staging:
        assert [place.extent.file.exists() for place in places] == [False] * len(places)
        write_places(staging)
        stale.seek(places[0].extent.offset)
        stale.write(b"#" * places[0].extent.nbytes)
        stale.flush()
        publish(staging, FILES, LOCK)
    assert read_tensors(tmp_path / "model") == expected_tensors(tensors("abc"))


def test_a_second_run_is_refused_at_once_and_the_first_goes_on(tmp_path: Path) -> None:
    """Two runs of one output: the second gets an error, and does not disturb the first."""
    with open_staging(tmp_path / "model", shards_of("abc")) as first:
        with pytest.raises(OutputError, match="another run is writing this output"):
            prepare(tmp_path / "model", shards_of("xyz"))
        write_places(first)
        publish(first, FILES, LOCK)
    assert read_tensors(tmp_path / "model") == expected_tensors(tensors("abc"))


def test_the_run_lock_is_free_after_a_run(tmp_path: Path) -> None:
    """Published, abandoned, or refused for lack of room: the next run can start."""
    write_model(tmp_path / "model", tensors("abc"))
    abandon(prepare(tmp_path / "model", shards_of("xyz")))
    with pytest.raises(OutputError, match="not enough room"):
        prepare(tmp_path / "model", shards_of("xyz"), extra_bytes=10**18)
    assert write_model(tmp_path / "model", tensors("xyz")).changed


def test_a_lock_file_removed_under_a_waiting_run_is_not_mistaken_for_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that opened the lock just before its owner removed it takes hold of the new one, not of the ghost."""
    flock = fcntl.flock

    def owner_removes_it_first(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        (tmp_path / ".model.mergeflow" / "lock").unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", owner_removes_it_first)
    with open_staging(tmp_path / "model", shards_of("abc")) as staging:
        held = os.fstat(staging.run_lock.fileno())
        assert os.path.samestat(held, (staging.folder / "lock").stat())


def test_a_file_system_without_locks_refuses_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where flock is not offered at all (some parallel file systems), a run goes on without it."""

    def not_offered(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", not_offered)
    assert write_model(tmp_path / "model", tensors("abc")).changed


def test_a_staging_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    """Nothing is written through a link that lies where the staging folder should be."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".model.mergeflow").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="is a link"):
        prepare(tmp_path / "model", shards_of("abc"))
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_disk_too_small_is_refused_with_both_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little room is found before anything is written; the message has what is needed and what is free."""
    status = namedtuple("status", "f_bavail f_frsize")(1000, 4096)
    monkeypatch.setattr(os, "statvfs", lambda path: status)
    with pytest.raises(OutputError, match=r"needs 16\.8 MB, 4\.1 MB are free"):
        prepare(tmp_path / "model", shards_of("abc"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_size_limit_is_refused_by_name(tmp_path: Path) -> None:
    """A shard larger than `ulimit -f` allows is found before anything is written."""
    earlier = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, earlier[1]))
    try:
        with pytest.raises(OutputError, match="ulimit -f"):
            prepare(tmp_path / "model", shards_of("abc"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, earlier)
    assert list(tmp_path.iterdir()) == []


def test_a_shard_that_was_cut_cannot_be_completed(tmp_path: Path) -> None:
    """A partial file that is not as large as it was made is an error, not an output."""
    with open_staging(tmp_path / "model", shards_of("ab")) as staging:
        os.truncate(staging.works[0].places[0].extent.file, 10)
        with pytest.raises(RunError, match="10 bytes instead of"):
            complete_shard(staging, staging.works[0].shard)


def test_unchanged_tensors_are_copied_from_the_earlier_output(tmp_path: Path) -> None:
    """In a rebuilt shard, tensors with the same key arrive from the old file, byte for byte."""
    write_model(tmp_path / "model", tensors({"a": "1", "b": "2"}))
    planned = tensors({"a": "new", "b": "2"})
    with open_staging(tmp_path / "model", plan_shards(planned, 128)) as staging:
        new, unchanged = staging.works[0].places
        [run] = copy_runs(staging.works[0].places)
        copy_run(run)
        content = unchanged.extent.file.read_bytes()
        assert content[unchanged.extent.offset :] == expected_tensors(planned)["b"]
        assert content[new.extent.offset : unchanged.extent.offset] == bytes(64)


def test_an_earlier_output_that_vanished_is_a_failed_run(tmp_path: Path) -> None:
    """Copying from a shard that somebody removed meanwhile says which tensor and why."""
    write_model(tmp_path / "model", tensors({"a": "1", "b": "2"}))
    with open_staging(tmp_path / "model", plan_shards(tensors({"a": "new", "b": "2"}), 128)) as staging:
        (tmp_path / "model" / "model.safetensors").unlink()
        with pytest.raises(RunError, match=r"copy b from .*No such file"):
            copy_run(*copy_runs(staging.works[0].places))


def test_the_target_stays_as_it_was_while_a_run_is_under_way(tmp_path: Path) -> None:
    """Until it is published, nothing of a run can be seen under the target's name."""
    write_model(tmp_path / "model", tensors("abcd"))
    before = snapshot(tmp_path / "model")
    with open_staging(tmp_path / "model", shards_of("axcd")) as staging:
        write_places(staging)
        assert snapshot(tmp_path / "model") == before
    assert snapshot(tmp_path / "model") == before
