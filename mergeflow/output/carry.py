"""What people put into an output folder outlives its next version.

A file of the earlier output is ours when its lock says so and its bytes still are what was written: the new version
has its own, or does without. Everything else is somebody's work (evaluation results, notes, an edited model card) and
gets a second name in the new version, by hard link. Where the new version has a file of that name, the old one becomes
``NAME.bak``. Shards, index and lock of the earlier output never come along: a loader would read them.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from blake3 import blake3

from mergeflow.errors import RunError
from mergeflow.output.disk import Disk
from mergeflow.output.layout import index_file
from mergeflow.output.lock import LOCK_FILE, Lock


def carry_over(
    earlier: Path, earlier_lock: Lock, fresh: Path, lock: Lock, disk: Disk, done: Collection[str] = ()
) -> dict[str, str]:
    """Give the users' files in the folder `earlier` a second name in `fresh`: path in `earlier` -> path in `fresh`.

    `lock` is what `fresh` is made of. Paths in `done` are passed over.

    Raises:
        RunError: a folder in `earlier` is on another file system.
        OSError: a file cannot be linked or copied.
    """
    weights = {LOCK_FILE, index_file(earlier_lock.shards), *(shard.file for shard in earlier_lock.shards)}
    taken = {LOCK_FILE, index_file(lock.shards), *lock.files, *(shard.file for shard in lock.shards)}
    carried = {}
    for path in _files_below(earlier, ""):
        written = {earlier_lock.files.get(path), lock.files.get(path)} - {None}
        if path in weights or path in done or (written and _digest(earlier / path) in written):
            continue

        name = _free_name(path, earlier, fresh) if path in taken else path
        for folder in reversed(Path(name).parents[:-1]):
            disk.make_folder(fresh / folder)
        disk.link(earlier / path, fresh / name)
        carried[path] = name
    return carried


def _files_below(folder: Path, prefix: str) -> Iterator[str]:
    """Paths of everything below `folder` that is not a folder, sorted; links are named, not followed."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if not entry.is_dir(follow_symlinks=False):
            yield prefix + entry.name
            continue
        if _device(folder / entry.name) != _device(folder):
            raise RunError(f"{entry.path} is on another file system, so its files cannot be kept: unmount it first")
        yield from _files_below(folder / entry.name, f"{prefix}{entry.name}/")


def _device(folder: Path) -> int:
    return folder.stat().st_dev


def _digest(path: Path) -> str | None:
    """blake3 of a plain file, as the lock has it; None for a link, a pipe or a device, which we never write."""
    return blake3().update_mmap(path).hexdigest() if stat.S_ISREG(path.lstat().st_mode) else None


def _free_name(path: str, earlier: Path, fresh: Path) -> str:
    """`path` with ``.bak``, ``.bak2``, ... : the first that neither folder has."""
    names = (f"{path}.bak{number if number > 1 else ''}" for number in itertools.count(1))
    return next(name for name in names if not os.path.lexists(earlier / name) and not os.path.lexists(fresh / name))
