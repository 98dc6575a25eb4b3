"""Small things the room says and does: sizes in words, the real disk, and what it does not import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mergeflow.errors import RunError
from mergeflow.output.disk import Disk
from mergeflow.output.failures import reported
from mergeflow.output.journal import identify, journal_line, read_journal
from mergeflow.output.room import readable


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1500, "1.5 kB"), (999_999, "1 MB"), (5_000_000_000, "5 GB"),
        (1_500_000_000_000, "1.5 TB"), (10**18, "1000000 TB"),
    ],
)  # fmt: skip
def test_sizes_are_written_as_people_write_them(nbytes: int, text: str) -> None:
    """Powers of ten, three digits at most."""
    assert readable(nbytes) == text


def test_sync_waits_for_files_and_folders(tmp_path: Path) -> None:
    """The real disk can sync a file and a folder, and complains about what is not there."""
    (tmp_path / "file").touch()
    Disk().sync(tmp_path / "file")
    Disk().sync(tmp_path)
    with pytest.raises(FileNotFoundError):
        Disk().sync(tmp_path / "missing")


def test_a_shard_file_is_a_header_and_a_hole(tmp_path: Path) -> None:
    """A new shard takes no room on the disk before tensors are written (sparse), whatever its size."""
    Disk().create_shard(tmp_path / "shard", b"header", 1 << 30)
    status = (tmp_path / "shard").stat()
    assert status.st_size == 1 << 30
    assert status.st_blocks * 512 < 1 << 20


def test_an_error_of_the_system_says_what_could_not_be_done(tmp_path: Path) -> None:
    """The system's reason and our action, in an error of our tree with the exit code of a failed run."""
    with pytest.raises(RunError, match="cannot do this: No such file") as caught, reported(RunError, "do this"):
        os.stat(tmp_path / "missing")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b'{"file": "a"}',
        b"\xff",
        b"null",
        b"[" * 100_000,
        b'{"file": "shard", "key": "key", "inode": [1], "size": 1, "mtime_ns": 0}',
        b'{"file": "shard", "file": "shard", "key": "key", "inode": 1, "size": 1, "mtime_ns": 0}',
        b'{"file": "sh\\u0000ard", "key": "key", "inode": 1, "size": 1, "mtime_ns": 0}',
        b'{"file": "shard", "key": "' + b"k" * 5000 + b'", "inode": 1, "size": 1, "mtime_ns": 0}',
    ],
    ids=lambda line: line[:20].decode(errors="replace"),
)
def test_a_damaged_journal_line_is_passed_over(tmp_path: Path, line: bytes) -> None:
    """What cannot be read is not complete; the lines around it still count."""
    (tmp_path / "shard").write_bytes(b"x")
    entry = identify(tmp_path / "shard", "key")
    assert entry is not None
    (tmp_path / "journal").write_bytes(line + b"\n" + journal_line(entry) + line)
    assert read_journal(tmp_path / "journal", tmp_path) == {"key": "shard"}


def test_a_journal_cannot_point_outside_its_folder(tmp_path: Path) -> None:
    """A file name with a path in it is no entry."""
    (tmp_path / "next").mkdir()
    (tmp_path / "shard").write_bytes(b"x")
    entry = identify(tmp_path / "shard", "key")
    assert entry is not None
    (tmp_path / "journal").write_bytes(journal_line(entry).replace(b'"shard"', b'"../shard"'))
    assert read_journal(tmp_path / "journal", tmp_path / "next") == {}


def test_the_room_needs_no_tensor_library() -> None:
    """Laying out, comparing and publishing import neither torch nor zarr nor dask: a plan must start fast."""
    modules = "card carry compare config copies disk files in_place journal layout lock patching publish room run_lock staging target transfer"
    script = f"""
import importlib, sys
for name in {modules.split()!r}:
    importlib.import_module("mergeflow.output." + name)
print(sorted({{"torch", "zarr", "dask", "numpy", "huggingface_hub", "pydantic"}} & set(sys.modules)))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.strip() == "[]"
