"""Moving bytes and names: the kernel's way and the way round it give the same result."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergeflow.execute.writeback import start_writeback, write_all
from mergeflow.output import transfer
from mergeflow.output.transfer import KernelCopy, copy_range, exchange_names, kernel_copy


def not_offered(*_: int) -> int:
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


def seven_at_a_time(source: int, target: int, count: int, source_offset: int, target_offset: int) -> int:
    return os.pwrite(target, os.pread(source, min(count, 7), source_offset), target_offset)


def gives_up_after_ten(source: int, target: int, count: int, source_offset: int, target_offset: int) -> int:
    return seven_at_a_time(source, target, count, source_offset, target_offset) if source_offset < 10 else 0


COPIES = [kernel_copy, not_offered, seven_at_a_time, gives_up_after_ten]


@pytest.mark.parametrize("copy", COPIES)
@given(content=st.binary(max_size=300), start=st.integers(0, 300), target_offset=st.integers(0, 40))
def test_copy_range_copies_exactly_the_range(
    tmp_path_factory: pytest.TempPathFactory, copy: KernelCopy, content: bytes, start: int, target_offset: int
) -> None:
    """Whatever the kernel offers, the bytes asked for arrive at their offset and nothing else changes."""
    folder = tmp_path_factory.mktemp("copy")
    start = min(start, len(content))
    (folder / "source").write_bytes(content)
    (folder / "target").write_bytes(b"." * 400)

    with (folder / "source").open("rb") as source, (folder / "target").open("rb+") as target:
        copy_range(source.fileno(), start, target.fileno(), target_offset, len(content) - start, copy)

    wanted = content[start:]
    rest = b"." * (400 - target_offset - len(wanted))
    assert (folder / "target").read_bytes() == b"." * target_offset + wanted + rest


@given(
    source_offset=st.integers(0, 9000),
    target_offset=st.integers(0, 9000),
    nbytes=st.integers(0, 20_000),
    same=st.booleans(),
)
def test_whole_blocks_are_shared_and_the_rest_is_copied(
    tmp_path_factory: pytest.TempPathFactory, source_offset: int, target_offset: int, nbytes: int, same: bool
) -> None:
    """Where a file system shares blocks, only whole ones at whole offsets are asked for, and every byte arrives once."""
    folder = tmp_path_factory.mktemp("clone")
    target_offset = source_offset + 4096 * (target_offset // 4096) if same else target_offset
    content = os.urandom(30_000)
    (folder / "source").write_bytes(content)
    (folder / "target").write_bytes(bytes(40_000))
    shared, counted = [], []

    def clone(source: int, target: int, count: int, start: int, to: int) -> int:
        assert count > 0
        assert (count % 4096, start % 4096, to % 4096) == (0, 0, 0)
        shared.append(count)
        return os.pwrite(target, os.pread(source, count, start), to)

    with (folder / "source").open("rb") as source, (folder / "target").open("rb+") as target:
        files = source.fileno(), source_offset, target.fileno(), target_offset
        copy_range(*files, nbytes, clone=clone, copied=counted.append)
    wanted = content[source_offset : source_offset + nbytes]
    assert (folder / "target").read_bytes()[target_offset : target_offset + nbytes] == wanted
    assert sum(counted) == nbytes
    if same and nbytes >= 2 * 4096:
        assert nbytes - sum(shared) < 2 * 4096


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_disk_that_fails_while_it_shares_is_an_error(tmp_path: Path, number: int) -> None:
    """A refusal to share means copying; a full or broken disk is told."""

    def clone(*_: int) -> int:
        raise OSError(number, os.strerror(number))

    (tmp_path / "source").write_bytes(bytes(8192))
    with (
        (tmp_path / "source").open("rb") as source,
        (tmp_path / "target").open("wb") as target,
        pytest.raises(OSError, match=os.strerror(number)),
    ):
        copy_range(source.fileno(), 0, target.fileno(), 0, 8192, clone=clone)


@pytest.mark.parametrize("copy", COPIES)
def test_a_source_that_ends_too_early_is_an_error(tmp_path: Path, copy: KernelCopy) -> None:
    """Asked for more bytes than there are, a copy fails instead of leaving a hole."""
    (tmp_path / "source").write_bytes(b"x" * 20)
    with (
        (tmp_path / "source").open("rb") as source,
        (tmp_path / "target").open("wb") as target,
        pytest.raises(OSError, match="1 bytes too early"),
    ):
        copy_range(source.fileno(), 0, target.fileno(), 0, 21, copy)


def test_a_full_disk_is_not_taken_for_a_kernel_that_cannot_copy(tmp_path: Path) -> None:
    """ENOSPC from the kernel's copy is reported, not tried again by hand."""

    def full(*_: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "source").write_bytes(b"x")
    with (
        (tmp_path / "source").open("rb") as source,
        (tmp_path / "target").open("wb") as target,
        pytest.raises(OSError, match="No space"),
    ):
        copy_range(source.fileno(), 0, target.fileno(), 0, 1, full)


def test_a_copy_larger_than_one_call_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies are made in several calls, each at its own offsets."""
    monkeypatch.setattr(transfer, "_COPY_BYTES", 64)
    content = os.urandom(1000)
    (tmp_path / "source").write_bytes(content)
    with (tmp_path / "source").open("rb") as source, (tmp_path / "target").open("wb") as target:
        copy_range(source.fileno(), 0, target.fileno(), 0, 1000)
    assert (tmp_path / "target").read_bytes() == content


def test_exchange_swaps_two_folders(tmp_path: Path) -> None:
    """After an exchange each name has the other's folder (or the system says it cannot, and nothing has changed)."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    swapped = exchange_names(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "one" / "two").exists() == swapped
    assert (tmp_path / "two" / "one").exists() == swapped


def test_exchange_with_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    """A missing folder is an OSError that names it, on every system that can exchange at all."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    if not exchange_names(tmp_path / "one", tmp_path / "two"):
        pytest.skip("this system cannot exchange names")
    with pytest.raises(FileNotFoundError) as caught:
        exchange_names(tmp_path / "one", tmp_path / "missing")
    assert caught.value.filename2 == str(tmp_path / "missing")


def test_starting_writeback_changes_nothing_and_never_fails(tmp_path: Path) -> None:
    """The hint leaves the bytes as they are; even a descriptor that is none is no error."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 5000)
    with path.open("rb+") as file:
        start_writeback(file.fileno(), 0, 5000)
    start_writeback(-1, 0, 10)
    assert path.read_bytes() == b"x" * 5000


def test_write_all_goes_on_after_a_short_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pwrite that takes three bytes at a time still writes everything, once, at its place."""
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, content, offset: pwrite(file, content[:3], offset))
    with (tmp_path / "file").open("wb") as file:
        write_all(file.fileno(), b"0123456789", 2)
    assert (tmp_path / "file").read_bytes() == b"\0\x000123456789"
