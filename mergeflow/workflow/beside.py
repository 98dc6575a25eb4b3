"""What a run is told of the other candidates of its sweep, so that nothing is computed twice.

- Tensors that another candidate's folder holds are copied from there by the kernel: candidates that differ in a few
  layers have the others in common. A folder counts as it is when a candidate begins: written by this sweep, or by an
  earlier one whose file is still intact (`output.target`), and the file must still be the one that was looked at.
- Results that later candidates need are kept in the cache when that is worth it (`graph.policy`): `wanted_again`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mergeflow.errors import OutputError
from mergeflow.output.compare import Extent, present_tensors
from mergeflow.output.target import inspect_target


@dataclass(frozen=True, slots=True)
class Beside:
    """What the other candidates of a sweep have and want.

    Args:
        present: where another candidate's folder holds a tensor, by its key.
        wanted_again: by key, how many later candidates need a result.
        is_last_use: the cache is gone when the sweep ends, so that nothing is kept for later runs.
    """

    present: Mapping[str, Extent] = field(default_factory=dict)
    wanted_again: Mapping[str, int] = field(default_factory=dict)
    is_last_use: bool = False


ALONE = Beside()

_Identity = tuple[int, int, int, int]


class Folders:
    """The folders of a sweep's candidates, and the tensors that they hold."""

    def __init__(self) -> None:
        self._held: dict[Path, dict[str, Extent]] = {}
        self._files: dict[Path, _Identity | None] = {}

    def look(self, folder: Path) -> None:
        """See what a folder holds now, in place of what it held before. One that cannot be used holds nothing."""
        try:
            target = inspect_target(folder)
        except (OutputError, OSError):
            self._held.pop(folder, None)
            return
        self._held[folder] = present_tensors(target)
        for file in {extent.file for extent in self._held[folder].values()}:
            self._files[file] = _identity(file)

    def present(self) -> dict[str, Extent]:
        """Where each tensor is; files that are not what they were when they were looked at have none."""
        unchanged = {file for file, seen in self._files.items() if seen is not None and seen == _identity(file)}
        return {key: extent for held in self._held.values() for key, extent in held.items() if extent.file in unchanged}


def _identity(file: Path) -> _Identity | None:
    try:
        status = os.lstat(file)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
