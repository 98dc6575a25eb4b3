"""Publishing: one rename shows everything, what users added stays, and nothing stale does."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from output_builders import (
    FILES,
    LOCK,
    ExchangelessDisk,
    UnsyncedDisk,
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
from mergeflow.output.disk import Disk
from mergeflow.output.files import NewFile
from mergeflow.output.lock import read_lock
from mergeflow.output.publish import publish
from mergeflow.output.sample import sample_digest
from mergeflow.output.staging import open_staging

SHARDED = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"}
SMALL = {"config.json", "README.md", "1_Pooling/config.json", "mergeflow.lock.json"}


def test_a_published_folder_holds_exactly_what_was_planned(tmp_path: Path) -> None:
    """Shards, index, small files, lock, and nothing else, in the target or beside it."""
    write_model(tmp_path / "model", tensors("abc"))
    assert set(snapshot(tmp_path / "model")) == SHARDED | SMALL
    assert read_tensors(tmp_path / "model") == expected_tensors(tensors("abc"))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_single_shard_has_no_index(tmp_path: Path) -> None:
    """One shard is model.safetensors alone: an index beside it would be read first."""
    write_model(tmp_path / "model", tensors("abc"), limit=0)
    assert set(snapshot(tmp_path / "model")) == SMALL | {"model.safetensors"}


def test_the_same_run_writes_the_same_bytes_elsewhere(tmp_path: Path) -> None:
    """Two outputs of the same plan are equal in every byte, the lock included: no time, machine or place is in it."""
    write_model(tmp_path / "one", tensors("abc"))
    write_model(tmp_path / "deep" / "two", tensors("abc"), files=FILES[::-1])
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "deep" / "two")


def test_nothing_is_touched_when_nothing_changed(tmp_path: Path) -> None:
    """The same run again leaves the folder itself as it is (not an equal one in its place), and says so."""
    write_model(tmp_path / "model", tensors("abc"))
    before = {path: path.stat() for path in (tmp_path / "model", *(tmp_path / "model").rglob("*"))}

    again = write_model(tmp_path / "model", tensors("abc"))
    assert not again.changed
    assert {path: path.stat().st_mtime_ns for path in before} == {path: s.st_mtime_ns for path, s in before.items()}
    assert {path: path.stat().st_ino for path in before} == {path: s.st_ino for path, s in before.items()}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_only_the_lock_changes_when_only_the_lock_does(tmp_path: Path) -> None:
    """A recipe that was only re-worded is in the new lock, and no shard is written."""
    write_model(tmp_path / "model", tensors("abc"))
    before = snapshot(tmp_path / "model")
    published = write_model(tmp_path / "model", tensors("abc"), lock=replace(LOCK, recipe="# a comment\n"))
    after = snapshot(tmp_path / "model")

    assert published.changed
    assert {path for path in after if after[path] != before.get(path)} == {"mergeflow.lock.json"}


@pytest.mark.parametrize("disk", [UnsyncedDisk(), ExchangelessDisk()], ids=["exchange", "two renames"])
def test_unchanged_shards_are_the_same_files_as_before(tmp_path: Path, disk: Disk) -> None:
    """A kept shard is the old file under a second name, not a copy; a changed one is a new file."""
    first = write_model(tmp_path / "model", tensors("abcd")).lock.shards
    inodes = [(tmp_path / "model" / shard.file).stat().st_ino for shard in first]

    planned = tensors({"a": "a", "b": "b", "c": "new", "d": "d"})
    write_model(tmp_path / "model", planned, disk=disk)
    after = [(tmp_path / "model" / shard.file).stat().st_ino for shard in first]
    assert after[0] == inodes[0]
    assert after[1] != inodes[1]
    assert read_tensors(tmp_path / "model") == expected_tensors(planned)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_stale_shards_of_a_larger_output_are_gone(tmp_path: Path) -> None:
    """From many shards to one: neither old shards nor the index that loaders would follow stay behind."""
    write_model(tmp_path / "model", tensors("abcdefgh"))
    write_model(tmp_path / "model", tensors("ab"))
    assert set(snapshot(tmp_path / "model")) == SMALL | {"model.safetensors"}


def test_files_of_ours_that_are_no_longer_written_are_gone(tmp_path: Path) -> None:
    """A file that an earlier run wrote and this one does not is removed."""
    write_model(tmp_path / "model", tensors("abc"))
    write_model(tmp_path / "model", tensors("abc"), files=FILES[:1])
    assert set(snapshot(tmp_path / "model")) == SHARDED | {"config.json", "mergeflow.lock.json"}


def test_what_users_added_stays(tmp_path: Path) -> None:
    """Evaluation results, folders of them, links and hidden files come along, as the same files, links unfollowed."""
    folder = tmp_path / "model"
    write_model(folder, tensors("abc"))
    (folder / "eval" / "deep").mkdir(parents=True)
    (folder / "eval" / "deep" / "results.json").write_text("{}")
    (folder / ".notes").write_text("mine")
    (folder / "link").symlink_to("../elsewhere")
    inode = (folder / ".notes").stat().st_ino

    published = write_model(folder, tensors("abx"))
    assert published.carried == (".notes", "eval/deep/results.json", "link")
    assert published.warnings == ()
    assert (folder / ".notes").stat().st_ino == inode
    assert (folder / "eval" / "deep" / "results.json").read_text() == "{}"
    assert os.readlink(folder / "link") == "../elsewhere"


def test_an_edited_file_is_kept_beside_the_new_one(tmp_path: Path) -> None:
    """A model card that somebody edited is not lost when it is written anew: each edit is kept, with a warning."""
    folder = tmp_path / "model"
    write_model(folder, tensors("abc"))
    (folder / "README.md").write_text("my words")
    published = write_model(folder, tensors("abx"))
    (folder / "README.md").write_text("my other words")
    write_model(folder, tensors("abc"))

    assert published.carried == ("README.md.bak",)
    assert published.warnings == (
        "README.md was edited since it was written: the edited file is kept as README.md.bak",
    )
    assert (folder / "README.md").read_bytes() == FILES[1].content
    assert (folder / "README.md.bak").read_text() == "my words"
    assert (folder / "README.md.bak2").read_text() == "my other words"


def test_an_edit_is_noticed_when_nothing_else_changed(tmp_path: Path) -> None:
    """The same run over an edited file writes it again (and keeps the edit): the output is what its lock says."""
    folder = tmp_path / "model"
    write_model(folder, tensors("abc"))
    (folder / "config.json").write_text('{"edited": 1}')
    assert write_model(folder, tensors("abc")).changed
    assert (folder / "config.json").read_bytes() == FILES[0].content
    assert (folder / "config.json.bak").read_text() == '{"edited": 1}'


def test_a_users_file_that_the_new_version_brings_too(tmp_path: Path) -> None:
    """Where a user's file has a name that is now written: the same bytes are no conflict, others are kept as .bak."""
    folder = tmp_path / "model"
    write_model(folder, tensors("abc"))
    (folder / "same.txt").write_text("same")
    (folder / "other.txt").write_text("mine")
    files = (*FILES, NewFile("same.txt", b"same"), NewFile("other.txt", b"ours"))
    assert write_model(folder, tensors("abx"), files=files).carried == ("other.txt.bak",)


def test_an_edited_file_that_is_no_longer_written_stays_under_its_name(tmp_path: Path) -> None:
    """What somebody made of a file of ours is theirs."""
    folder = tmp_path / "model"
    write_model(folder, tensors("abc"))
    (folder / "README.md").write_text("my words")
    assert write_model(folder, tensors("abc"), files=FILES[:1]).carried == ("README.md",)


@pytest.mark.parametrize("disk_kind", [UnsyncedDisk, ExchangelessDisk])
def test_a_file_added_while_publishing_is_not_lost(tmp_path: Path, disk_kind: type[Disk]) -> None:
    """A result that lands in the earlier output in the last moment before the swap is in the new one."""
    folder = tmp_path / "model"
    write_model(folder, tensors("abc"))
    (folder / "early.json").write_text("early")

    class BusyDisk(disk_kind):  # type: ignore[misc, valid-type]
        def copy_mode(self, source: Path, path: Path) -> None:
            super().copy_mode(source, path)
            (folder / "late.json").write_text("late")

    published = write_model(folder, tensors("abx"), disk=BusyDisk())
    assert published.carried == ("early.json", "late.json")
    assert (folder / "late.json").read_text() == "late"


def test_an_empty_folder_becomes_the_model_with_its_permissions(tmp_path: Path) -> None:
    """A folder that somebody made for the output keeps its mode."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model").chmod(0o750)
    write_model(tmp_path / "model", tensors("abc"))
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o750
    write_model(tmp_path / "model", tensors("abx"))
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o750


def test_a_link_to_the_target_stays_a_link(tmp_path: Path) -> None:
    """Written through a link, the model is where the link leads, and the link is untouched."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk/model")
    write_model(tmp_path / "link", tensors("abc"))
    write_model(tmp_path / "link", tensors("abx"))
    assert os.readlink(tmp_path / "link") == "disk/model"
    assert read_tensors(tmp_path / "disk" / "model") == expected_tensors(tensors("abx"))


def test_files_are_copied_not_linked_from_their_source(tmp_path: Path) -> None:
    """A donor's file is a copy, even where the donor's is a link: editing the output leaves the input alone."""
    (tmp_path / "blob").write_text("vocabulary")
    (tmp_path / "vocab.txt").symlink_to("blob")
    write_model(tmp_path / "model", tensors("abc"), files=(NewFile("vocab.txt", tmp_path / "vocab.txt"),))
    written = tmp_path / "model" / "vocab.txt"
    assert written.read_text() == "vocabulary"
    assert not written.is_symlink()
    assert written.stat().st_ino != (tmp_path / "blob").stat().st_ino


def test_an_incomplete_shard_is_never_published(tmp_path: Path) -> None:
    """Publishing before every shard is complete is an error that names the shard; the target is untouched."""
    write_model(tmp_path / "model", tensors("abcd"))
    before = snapshot(tmp_path / "model")
    with (
        open_staging(tmp_path / "model", shards_of("abcx")) as staging,
        pytest.raises(RunError, match=r"model-00002-of-00002[.]safetensors is not complete"),
    ):
        publish(staging, FILES, LOCK)
    assert snapshot(tmp_path / "model") == before


@pytest.mark.parametrize("path", ["/etc/x", "../x", "a/../../x", "", "mergeflow.lock.json", "model.safetensors"])
def test_files_outside_the_folder_or_under_our_names_are_refused(tmp_path: Path, path: str) -> None:
    """A small file cannot leave the folder, nor take the name of a shard, the index or the lock."""
    with pytest.raises(OutputError):
        write_model(tmp_path / "model", tensors("a"), files=(NewFile(path, b""),))
    assert [path.name for path in tmp_path.iterdir()] == [".model.mergeflow"]


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    """A name that is written twice is an error, not the last one's content."""
    with pytest.raises(OutputError, match="two files of the output are called a"):
        write_model(tmp_path / "model", tensors("a"), files=(NewFile("a", b"1"), NewFile("a", b"2")))


def test_a_target_that_appeared_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    """Where nothing was and somebody has since put a folder with files, the run fails and their files stay."""
    with open_staging(tmp_path / "model", shards_of("abc")) as staging:
        write_places(staging)
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "theirs").touch()
        with pytest.raises(RunError, match="not empty"):
            publish(staging, FILES, LOCK)
    assert set(snapshot(tmp_path / "model")) == {"theirs"}
    assert staging.next.is_dir(), "complete shards are kept for the next run"


def test_warnings_about_changed_shards_reach_the_report(tmp_path: Path) -> None:
    """A shard that somebody removed is rebuilt, and the report says so."""
    write_model(tmp_path / "model", tensors("abcd"))
    (tmp_path / "model" / "model-00001-of-00002.safetensors").unlink()
    [warning] = write_model(tmp_path / "model", tensors("abcd")).warnings
    assert "model-00001-of-00002.safetensors was changed or removed" in warning
    assert read_tensors(tmp_path / "model") == expected_tensors(tensors("abcd"))


@pytest.mark.parametrize("means", ["mv", "cp -p"])
def test_a_shard_of_another_output_in_the_place_of_ours_is_rebuilt(tmp_path: Path, means: str) -> None:
    """Same names, sizes and header, and older than our lock: its bytes still give it away, whichever output it is of.

    The second shard of both outputs is the same, so only the first is warned of and written anew.
    """
    shard = "model-00001-of-00002.safetensors"
    wanted, others = tensors("abcd"), tensors({"a": "other", "b": "b", "c": "c", "d": "d"})
    write_model(tmp_path / "other", others)
    write_model(tmp_path / "model", wanted)
    lock, kept = (
        (tmp_path / "model" / "mergeflow.lock.json").read_bytes(),
        tmp_path / "model" / shard.replace("1", "2", 1),
    )
    inode = kept.stat().st_ino
    replaces = shutil.move if means == "mv" else shutil.copy2
    replaces(tmp_path / "other" / shard, tmp_path / "model" / shard)
    assert (tmp_path / "model" / shard).stat().st_mtime_ns <= (
        tmp_path / "model" / "mergeflow.lock.json"
    ).stat().st_mtime_ns

    published = write_model(tmp_path / "model", wanted)
    [warning] = published.warnings
    assert f"{shard} was changed or removed" in warning
    assert read_tensors(tmp_path / "model") == expected_tensors(wanted)
    assert (tmp_path / "model" / "mergeflow.lock.json").read_bytes() == lock
    assert kept.stat().st_ino == inode


def test_the_lock_holds_the_sample_of_every_shard_kept_or_written(tmp_path: Path) -> None:
    """A kept shard (here under another name) has the sample it had, a new one its own: as if all were written."""
    write_model(tmp_path / "model", tensors("abcd"))
    lock = write_model(tmp_path / "model", tensors("abcdef")).lock
    assert lock.samples == {shard.file: sample_digest(tmp_path / "model" / shard.file, shard) for shard in lock.shards}
    assert lock == write_model(tmp_path / "elsewhere", tensors("abcdef")).lock


def test_a_staging_folder_that_cannot_be_removed_is_only_a_warning(tmp_path: Path) -> None:
    """Once the output is in place, trouble with what is left over does not make the run a failure."""

    class StickyDisk(UnsyncedDisk):
        def remove_tree(self, path: Path) -> None:
            raise PermissionError(1, "Operation not permitted")

    write_model(tmp_path / "model", tensors("abc"))
    published = write_model(tmp_path / "model", tensors("abx"), disk=StickyDisk())
    assert "could not remove" in published.warnings[0]
    assert read_tensors(tmp_path / "model") == expected_tensors(tensors("abx"))

    assert write_model(tmp_path / "model", tensors("xyz")).warnings == ()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_where_files_cannot_be_linked_they_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system without hard links, kept shards and users' files are copied, latecomers included."""

    def no_links(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    folder = tmp_path / "model"
    write_model(folder, tensors("abcd"))
    (folder / "notes").write_text("mine")
    (folder / "notes").chmod(0o640)
    monkeypatch.setattr(os, "link", no_links)
    published = write_model(folder, tensors("abcx"))

    assert published.carried == ("notes",)
    assert (folder / "notes").stat().st_mode & 0o777 == 0o640
    assert read_tensors(folder) == expected_tensors(tensors("abcx"))


def test_the_lock_in_the_folder_is_the_one_reported(tmp_path: Path) -> None:
    """Published.lock is what the next run will read, with a digest of every file of the folder but shards and lock."""
    published = write_model(tmp_path / "model", tensors("abc"))
    assert read_lock(tmp_path / "model") == published.lock
    assert set(published.lock.files) == SMALL - {"mergeflow.lock.json"} | {"model.safetensors.index.json"}


def test_a_lock_survives_names_that_are_no_unicode(tmp_path: Path) -> None:
    """A path with a byte that is no UTF-8 (Python: half a surrogate pair) does not break the lock."""
    published = write_model(tmp_path / "model", tensors("abc"), lock=replace(LOCK, variables={"path": "\udcff"}))
    assert read_lock(tmp_path / "model") == published.lock


def test_an_earlier_output_between_two_renames_is_put_back(tmp_path: Path) -> None:
    """Killed between the two renames of a file system without exchange: the next run first restores the old output."""
    folder = tmp_path / "model"
    write_model(folder, tensors("abcd"))
    (folder / "notes").write_text("mine")
    (tmp_path / ".model.mergeflow").mkdir()
    folder.rename(tmp_path / ".model.mergeflow" / "previous")

    with open_staging(folder, shards_of("abcx")) as staging:
        assert states(staging) == ["kept", "rebuilt"]
    assert (folder / "notes").read_text() == "mine"
