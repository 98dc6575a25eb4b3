"""Reading inputs and writing outputs: pieces of segments, identities, short reads and writes, one writer at a time."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from programs import NOWHERE

from mergeflow.dtypes import by_name
from mergeflow.errors import RunError
from mergeflow.execute.files import InputFiles, OutputFiles, Turns, _pieces, read_all
from mergeflow.execute.writeback import write_all
from mergeflow.models.identity import identify
from mergeflow.models.records import Segment, TensorSource

CONTENT = bytes(range(200))


@given(lengths=st.lists(st.integers(0, 9), max_size=6), data=st.data())
def test_pieces_are_the_bytes_asked_for(lengths: list[int], data: st.DataObject) -> None:
    """Any run of a tensor in any segments, empty ones among them, is brought from the right places in order."""
    segments = [Segment(NOWHERE, 100 * number, length) for number, length in enumerate(lengths)]
    places = [segment.offset + byte for segment in segments for byte in range(segment.nbytes)]
    start = data.draw(st.integers(0, len(places)))
    length = data.draw(st.integers(0, len(places) - start))
    found = list(_pieces(segments, start, length))
    assert [segment.offset + skip + k for segment, skip, count in found for k in range(count)] == places[
        start : start + length
    ]
    assert all(count > 0 for _, _, count in found)


def tensor(path: Path, *ranges: tuple[int, int]) -> TensorSource:
    """A tensor of bytes that lies in these (offset, length) of a file."""
    with path.open("rb") as file:
        identity = identify(file.fileno(), str(path))
    segments = tuple(Segment(identity, offset, nbytes) for offset, nbytes in ranges)
    return TensorSource("t", by_name("uint8"), (sum(nbytes for _, nbytes in ranges),), segments)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(CONTENT)
    return tmp_path / "file"


def test_a_tensor_is_read_across_its_segments(path: Path) -> None:
    """Bytes that span three runs of a file come as one, and are counted."""
    with InputFiles() as files:
        out = bytearray(12)
        files.read(tensor(path, (10, 5), (100, 2), (50, 20)), 3, memoryview(out))
        assert out == CONTENT[13:15] + CONTENT[100:102] + CONTENT[50:58]
        assert files.bytes_read == 12


def test_descriptors_are_closed(path: Path) -> None:
    """Leaving closes every file, after an error too."""
    before = set(os.listdir("/proc/self/fd"))
    with InputFiles() as files:
        files.read(tensor(path, (0, 5)), 0, memoryview(bytearray(5)))
        assert len(os.listdir("/proc/self/fd")) > len(before)
    with pytest.raises(ZeroDivisionError), InputFiles() as files:
        files.read(tensor(path, (0, 5)), 0, memoryview(bytearray(5)))
        raise ZeroDivisionError
    assert set(os.listdir("/proc/self/fd")) == before


def test_another_file_under_the_name_is_refused(path: Path) -> None:
    """A file that was replaced since the plan is not opened; one that is replaced while open is noticed at the end."""
    planned = tensor(path, (0, 5))
    other = path.with_name("other")
    other.write_bytes(CONTENT)
    with pytest.raises(RunError, match="was replaced or changed"), InputFiles() as files:
        files.read(planned, 0, memoryview(bytearray(5)))
        os.replace(other, path)
    with pytest.raises(RunError, match="was replaced or changed"), InputFiles() as files:
        files.read(planned, 0, memoryview(bytearray(5)))


def test_a_file_deleted_while_open_is_still_the_file(path: Path) -> None:
    """Deleting an input that a task has open does not fail the task: its bytes are the planned ones."""
    with InputFiles() as files:
        files.read(tensor(path, (0, 5)), 0, memoryview(bytearray(5)))
        path.unlink()
        out = bytearray(5)
        with pytest.raises(FileNotFoundError):
            tensor(path, (0, 5))
    assert len(out) == 5


def test_a_shorter_file_is_an_error(path: Path) -> None:
    """A tensor that reaches past the end of its file is reported, not padded."""
    with pytest.raises(RunError, match="became shorter"), InputFiles() as files:
        files.read(tensor(path, (190, 20)), 0, memoryview(bytearray(20)))


def test_reads_and_writes_are_continued(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system call that moves only some bytes is followed by another; the end of a file ends a read."""
    read, write = os.preadv, os.pwrite
    monkeypatch.setattr(os, "preadv", lambda descriptor, into, offset: read(descriptor, [into[0][:7]], offset))
    monkeypatch.setattr(os, "pwrite", lambda descriptor, block, offset: write(descriptor, block[:7], offset))
    descriptor = os.open(path, os.O_RDWR)
    try:
        out = bytearray(60)
        assert read_all(descriptor, 20, memoryview(out)) == 60
        assert out == CONTENT[20:80]
        assert read_all(descriptor, 150, memoryview(out)) == 50
        write_all(descriptor, memoryview(b"x" * 50), 30)
    finally:
        os.close(descriptor)
    assert path.read_bytes() == CONTENT[:30] + b"x" * 50 + CONTENT[80:]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_said_to_be_full(path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """No room, no quota, too large a file: free some space and run again."""

    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pwrite", refuse)
    with (
        pytest.raises(RunError, match="the disk is full: cannot write .*file; free some space"),
        OutputFiles(Turns()) as files,
    ):
        files.write(str(path), 0, memoryview(b"abc"))


def test_an_output_is_written_in_place(path: Path) -> None:
    """Blocks go to their offsets of a file that exists; a file that does not is an error and is not made."""
    with OutputFiles(Turns()) as files:
        files.write(str(path), 5, memoryview(b"abc"))
        files.write(str(path), 100, memoryview(b"def"))
        with pytest.raises(RunError, match="cannot write .*: No such file"):
            files.write(str(path.with_name("nothing")), 0, memoryview(b"abc"))
    assert path.read_bytes() == CONTENT[:5] + b"abc" + CONTENT[8:100] + b"def" + CONTENT[103:]
    assert not path.with_name("nothing").exists()


def test_one_writer_of_a_file_at_a_time() -> None:
    """All who write a file share its lock, and writers of another file do not wait for it."""
    turns = Turns()
    with ThreadedLocks(turns) as locks:
        assert len({id(lock) for lock in locks}) == 1
    assert turns.of("b") is not turns.of("a")


class ThreadedLocks:
    """The lock of file "a" as many threads see it."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def __enter__(self) -> list[threading.Lock]:
        found: list[threading.Lock] = []
        threads = [threading.Thread(target=lambda: found.append(self.turns.of("a"))) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    def __exit__(self, *_: object) -> None:
        return
