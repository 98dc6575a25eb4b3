"""Values kept between passes, in the arena or in a scratch file that leaves nothing behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from mergeflow.errors import RunError
from mergeflow.execute.kept import KeptValues
from mergeflow.graph.memory import Keep, Storage

STORAGE = Storage((Keep(3, "memory", 8, 16), Keep(5, "file", 0, 100), Keep(6, "file", 100, 50)), 24, 150)


def files_of_this_process() -> set[str]:
    return {
        os.readlink(f"/proc/self/fd/{name}")
        for name in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{name}")
    }


def test_a_value_in_memory_is_a_view_of_the_arena(tmp_path: Path) -> None:
    """What is kept in memory is written and read in place; what is not has no view."""
    arena = torch.zeros(24, dtype=torch.uint8)
    with KeptValues(STORAGE, arena, str(tmp_path)) as kept:
        view = kept.view(3, 4, 8)
        assert view is not None
        view.fill_(7)
        assert kept.view(5, 0, 10) is None
        assert kept.view(4, 0, 10) is None
    assert arena.tolist() == [0] * 12 + [7] * 8 + [0] * 4


def test_a_value_in_the_scratch_file_comes_back(tmp_path: Path) -> None:
    """Blocks written to a scratch file are read back from it, each value at its own place."""
    with KeptValues(STORAGE, torch.empty(0), str(tmp_path)) as kept:
        kept.write(5, 0, memoryview(bytes(range(100))))
        kept.write(6, 20, memoryview(b"y" * 30))
        kept.write(6, 0, memoryview(b"x" * 20))
        out = bytearray(40)
        kept.read(5, 60, memoryview(out))
        assert out == bytes(range(60, 100))
        kept.read(6, 0, memoryview(out))
        assert out == b"x" * 20 + b"y" * 20


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """The scratch file has no name from the start, and is gone with the block, after an error too."""
    with KeptValues(STORAGE, torch.empty(0), str(tmp_path)) as kept:
        kept.write(5, 0, memoryview(b"abc"))
        assert list(tmp_path.iterdir()) == []
        assert any(str(tmp_path) in name for name in files_of_this_process())
    with pytest.raises(ZeroDivisionError), KeptValues(STORAGE, torch.empty(0), str(tmp_path)):
        raise ZeroDivisionError
    assert not any(str(tmp_path) in name for name in files_of_this_process())


def test_without_need_there_is_no_file(tmp_path: Path) -> None:
    """A program whose values all fit into memory needs no scratch folder."""
    with KeptValues(Storage((), 0, 0), torch.empty(0), str(tmp_path / "nowhere")):
        assert list(tmp_path.iterdir()) == []


def test_a_missing_scratch_folder_is_named(tmp_path: Path) -> None:
    """A scratch file that cannot be made is an error that says where."""
    with pytest.raises(RunError, match="cannot write .*nowhere: No such file"):
        KeptValues(STORAGE, torch.empty(0), str(tmp_path / "nowhere"))


def test_a_scratch_file_that_was_cut_is_noticed(tmp_path: Path) -> None:
    """Bytes that are not there are an error, and never what the buffer held before."""
    with (
        KeptValues(STORAGE, torch.empty(0), str(tmp_path)) as kept,
        pytest.raises(RunError, match="a scratch file in .* became shorter"),
    ):
        kept.read(5, 0, memoryview(bytearray(10)))
