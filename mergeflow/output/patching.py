"""Patching a model folder in place: only the bytes that change are written, and no shard is copied.

For those who ask for it (``--in-place``), where every shard keeps its layout. What changes is first computed into patch
files in the staging folder; the folder itself is untouched until all of it is on the disk. Then:

    1. commit  a record of every write (`patch_record`) gets its name, in one rename, and is synced
    2. apply   the folder's lock is moved away; the shards are written to and synced; the small files are moved in
    3. close   the new lock is written, the record removed, then the staging folder

Killed before 1, the folder is what it was, and patches that are complete are used by the next run. Killed after, the
next run to this folder applies the record again from its start, whatever it was asked to make: every step of it gives
the same when it is done twice. In between the folder has no lock, so that none of us takes it for a model: a plan says
what it is about to be. Other programs know nothing of locks: one that loads the folder during step 2 reads a mixture,
which is why this is not what a run does unless told to.

A shard with a second name (a hard link) is never patched: what the other name stands for would change with it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from mergeflow.errors import OutputError
from mergeflow.output.compare import ShardWork
from mergeflow.output.disk import Disk
from mergeflow.output.lock import LOCK_FILE
from mergeflow.output.patch_record import (
    PATCH_RECORD,
    PATCH_SUFFIX,
    Patch,
    ShardPatch,
    Write,
    is_applied,
    patch_json,
    read_patch,
)
from mergeflow.output.target import NEXT_FOLDER


def shard_patches(target: Path, works: Sequence[ShardWork]) -> tuple[ShardPatch, ...]:
    """What is written to each patched shard of the folder `target`.

    Raises:
        OutputError: a shard was given a second name since it was looked at.
    """
    patches = []
    for work in works:
        if work.state != "patched":
            continue
        path = target / work.shard.file
        status = path.lstat()
        if status.st_nlink > 1:
            raise OutputError(f"{path} was given a second name, so it cannot be patched in place: run again")
        offsets = {placed.tensor.name: placed.offset for placed in work.shard.tensors}
        writes = [Write(it.extent.offset, offsets[it.tensor.name], it.extent.nbytes) for it in work.places]
        patches.append(ShardPatch(work.shard.file, status.st_ino, work.shard.size, tuple(writes)))
    return tuple(patches)


def commit(staging: Path, patch: Patch, disk: Disk) -> None:
    """Decide for `patch`: everything that it names is on the disk, and from here on it will be applied."""
    fresh = staging / f"{PATCH_RECORD}.fresh"
    disk.write(fresh, patch_json(patch))
    disk.sync(fresh)
    disk.sync(staging.parent)
    disk.rename(fresh, staging / PATCH_RECORD)
    disk.sync(staging)


def finish(target: Path, staging: Path, disk: Disk) -> bool:
    """Apply the committed patch in the staging folder (held by us) to the folder `target`; False when there is none.

    Raises:
        OutputError: the record, or a shard, is not what it was.
        OSError: the disk failed; the next run goes on.
    """
    patch = read_patch(staging)
    if patch is None:
        return False
    if target.is_dir() and not is_applied(target, staging / NEXT_FOLDER):
        _check(target, staging, patch)
        _apply(target, staging, patch, disk)
    disk.remove(staging / PATCH_RECORD)
    return True


def _check(target: Path, staging: Path, patch: Patch) -> None:
    advice = f"remove {target} and {staging}, and run again"
    if not (staging / NEXT_FOLDER / LOCK_FILE).is_file():
        raise OutputError(f"the patch of {target} in {staging} has lost its {LOCK_FILE}: {advice}")
    for shard in patch.shards:
        path, source = target / shard.file, staging / NEXT_FOLDER / (shard.file + PATCH_SUFFIX)
        try:
            status, available = path.lstat(), source.lstat().st_size
        except FileNotFoundError as error:
            raise OutputError(f"{error.filename} is gone, and {target} was being patched: {advice}") from error
        same = stat.S_ISREG(status.st_mode) and (status.st_ino, status.st_size) == (shard.inode, shard.size)
        if not same:
            raise OutputError(f"{path} was replaced while {target} was being patched: {advice}")
        if any(write.start + write.nbytes > available for write in shard.writes):
            raise OutputError(f"{source} is too short, and {target} was being patched: {advice}")


def _apply(target: Path, staging: Path, patch: Patch, disk: Disk) -> None:
    fresh = staging / NEXT_FOLDER
    if os.path.lexists(target / LOCK_FILE):
        disk.rename(target / LOCK_FILE, staging / f"earlier.{LOCK_FILE}")
        disk.sync(target)
    for shard in patch.shards:
        disk.patch(fresh / (shard.file + PATCH_SUFFIX), target / shard.file, shard.writes)
        disk.sync(target / shard.file)

    folders = {target}
    for path in patch.files:
        for folder in reversed(Path(path).parents[:-1]):
            disk.make_folder(target / folder)
            folders.add(target / folder)
        if os.path.lexists(fresh / path):  # else it is in its place since an earlier attempt
            disk.rename(fresh / path, target / path)
    for path in patch.removed:
        disk.remove(target / path)
    for folder in sorted(folders):
        disk.sync(folder)

    # Written now, not moved: a lock older than its shards would not vouch for them.
    lock = staging / f"applied.{LOCK_FILE}"
    disk.write(lock, (fresh / LOCK_FILE).read_bytes())
    disk.sync(lock)
    disk.rename(lock, target / LOCK_FILE)
    disk.sync(target)
