"""Building the next version of a model folder beside the one that is there.

    parent/NAME                          the target: absent, or an earlier output, and not touched until the end
    parent/.NAME.mergeflow/              the staging folder
        lock                             held (flock) by the run that is writing; a second run is refused at once
        journal.jsonl                    which shards in next/ are complete
        patch.json                       a patch in place was decided for, and is not finished (`patching`)
        SHARD.TOKEN.partial              being written: header in place, tensors arriving at their offsets
        next/                            what will become NAME, in one rename

A shard is complete when it is on the disk (fsync), has its final name and stands in the journal, in this order. So
after `kill -9`, or a power cut, whatever the journal lists is whole, and the next run of the same recipe uses it; the
rest of the folder is cleared. What fsync costs was measured (`execute.writeback`): under a second for 2 GB, and little
when the writer has the kernel begin early. For that price a model folder that exists is complete even when the
machine dies.

TOKEN is drawn anew by every run. A task of a killed run may still be at work on another machine and opens its files by
path: under a name that only its run used, it finds nothing, and fails there instead of writing into the next run's.

The earlier output's shards are linked into next/ only while publishing: until then nothing that the target's user
does to them can reach the staging folder, and the reverse.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path

from mergeflow.errors import OutputError, RunError
from mergeflow.output.compare import (
    NEXT_FOLDER,
    NOWHERE,
    PARTIAL_SUFFIX,
    Extent,
    ShardWork,
    bytes_to_write,
    compare,
    partial_path,
)
from mergeflow.output.disk import Disk
from mergeflow.output.failures import reported
from mergeflow.output.in_place import in_place, why_not_in_place
from mergeflow.output.journal import JOURNAL_FILE, identify, journal_line, read_journal
from mergeflow.output.layout import Shard
from mergeflow.output.patch_record import PATCH_RECORD
from mergeflow.output.patching import finish
from mergeflow.output.room import check_room
from mergeflow.output.run_lock import RUN_LOCK, dismantle, hold, is_held, remove_any
from mergeflow.output.target import Target, inspect_target

PREVIOUS_FOLDER = "previous"


@dataclass(frozen=True, slots=True)
class Staging:
    """A staging folder that this process holds.

    Args:
        target: what is at the target's place.
        works: the planned shards and what is to be done for each, in planned order.
        disk: through which everything is written.
        run_lock: the lock file, open and locked.
        token: in the names of this run's partial files, and of no other run's.
        created: folders above the target that did not exist before.
        why_not_in_place: why the target is not patched in place although that was asked for, in a few words.
    """

    target: Target
    works: tuple[ShardWork, ...]
    disk: Disk
    run_lock: FileIO
    token: str
    created: tuple[Path, ...] = ()
    why_not_in_place: str | None = None

    @property
    def is_in_place(self) -> bool:
        """Whether shards of the target are patched where they are."""
        return any(work.state == "patched" for work in self.works)

    @property
    def folder(self) -> Path:
        return self.target.staging

    @property
    def next(self) -> Path:
        return self.folder / NEXT_FOLDER


def prepare(
    path: str | Path,
    shards: Sequence[Shard],
    disk: Disk | None = None,
    extra_bytes: int = 0,
    elsewhere: Mapping[str, Extent] = NOWHERE,
    *,
    patch: bool = False,
) -> Staging:
    """Take hold of the staging folder for `path`, and create the shards that must be written, headers in place.

    `extra_bytes` is what will be written beside the shards; `elsewhere` are tensors, by their keys, that other folders
    hold and that are copied from there. With `patch`, shards that keep their layout are patched in place (`in_place`).
    Holds the run lock until `publish` or `abandon`.

    Raises:
        OutputError: the place cannot be written, lacks room, or another run is writing there. Nothing is left behind.
    """
    disk = disk or Disk()
    target = inspect_target(path)
    with reported(OutputError, f"prepare the output folder {path}"):
        created = _missing_parents(target.path)
        try:
            for folder in created:
                disk.make_folder(folder)
            run_lock = hold(target.staging, disk)
        except BaseException:
            _remove_empty((*created, target.staging), disk)
            raise
        staging = Staging(target, (), disk, run_lock, secrets.token_hex(4), created)
        try:
            return _start(staging, shards, extra_bytes, elsewhere, patch=patch)
        except BaseException:
            abandon(staging)
            raise


def with_keys(staging: Staging, shards: Sequence[Shard]) -> Staging:
    """The same with `shards` in place of its own, which had no keys yet and were laid out in the same way."""
    works = zip(staging.works, shards, strict=True)
    return replace(staging, works=tuple(replace(work, shard=shard) for work, shard in works))


@contextlib.contextmanager
def open_staging(
    path: str | Path,
    shards: Sequence[Shard],
    disk: Disk | None = None,
    extra_bytes: int = 0,
    elsewhere: Mapping[str, Extent] = NOWHERE,
    *,
    patch: bool = False,
) -> Iterator[Staging]:
    """`prepare` for a with-block: whatever is not published at its end is abandoned."""
    staging = prepare(path, shards, disk, extra_bytes, elsewhere, patch=patch)
    try:
        yield staging
    finally:
        abandon(staging)


def complete_shard(staging: Staging, shard: Shard) -> None:
    """Declare that every tensor of `shard` has been written: it survives from here on. Any thread may call this.

    Raises:
        RunError: the file is not what was prepared, or the disk failed.
    """
    work = next(work for work in staging.works if work.shard.file == shard.file)
    partial, final = partial_path(staging.folder, work.file, staging.token), staging.next / work.file
    with reported(RunError, f"complete {partial}"):
        size = partial.stat().st_size
        if size != work.nbytes:
            raise RunError(f"{partial} has {size} bytes instead of {work.nbytes}: was it changed?")
        staging.disk.sync(partial)
        staging.disk.rename(partial, final)

        key = work.key if work.state == "patched" else shard.key
        entry = identify(final, key) if key is not None else None
        if entry is not None:
            staging.disk.append(staging.folder / JOURNAL_FILE, journal_line(entry))


def abandon(staging: Staging) -> bool:
    """Let go of the staging folder. True when it stays because it holds complete shards, for the next run to use.

    After `publish` there is nothing left to let go of, and this does nothing.
    """
    disk, folder = staging.disk, staging.folder
    if not is_held(folder, staging.run_lock):
        return False
    try:
        with contextlib.suppress(OSError):
            _recover(staging)
        if _holds_earlier_output(staging) or (folder / PATCH_RECORD).exists():
            return True
        if read_journal(folder / JOURNAL_FILE, staging.next):
            for partial in folder.glob("*" + PARTIAL_SUFFIX):
                with contextlib.suppress(OSError):
                    disk.remove(partial)
            return True
        with contextlib.suppress(OSError):
            dismantle(folder, disk)
        _remove_empty(staging.created, disk)
        return False
    finally:
        staging.run_lock.close()


def _start(
    staging: Staging,
    shards: Sequence[Shard],
    extra_bytes: int,
    elsewhere: Mapping[str, Extent] = NOWHERE,
    *,
    patch: bool = False,
) -> Staging:
    """Everything that needs the run lock: look again, clear what is stale, check the room, create the shards."""
    disk, folder = staging.disk, staging.folder
    _recover(staging)
    finish(staging.target.path, folder, disk)
    disk.make_folder(staging.next)
    # First, because a run killed while it published has left links to the target's shards.
    _clear(staging, set(read_journal(folder / JOURNAL_FILE, staging.next).values()))
    target = inspect_target(staging.target.path)

    works = compare(target, shards, staging.token, elsewhere)
    is_in_place = patch and any(work.state == "rebuilt" for work in works)
    why_not = why_not_in_place(target, works) if is_in_place else None
    if is_in_place and why_not is None:
        works = in_place(target, works, staging.token)
    _clear(staging, {work.file for work in works if _is_complete(work)})
    _keep_journal(staging, works)

    largest = max((work.shard.size for work in works), default=0)
    check_room(target.path.parent, bytes_to_write(works) + extra_bytes, largest)
    for work in works:
        if work.is_to_write:
            partial = partial_path(folder, work.file, staging.token)
            disk.create_shard(partial, b"" if work.state == "patched" else work.shard.header, work.nbytes)
    return replace(staging, target=target, works=works, why_not_in_place=why_not)


def _is_complete(work: ShardWork) -> bool:
    """Whether an interrupted run has completed what is to be written for a shard."""
    return work.state == "resumed" or (work.state == "patched" and work.source is not None)


def _recover(staging: Staging) -> None:
    """Where folders cannot be exchanged, a run killed between two renames leaves the earlier output in `previous`."""
    if _holds_earlier_output(staging):
        staging.disk.rename(staging.folder / PREVIOUS_FOLDER, staging.target.path)


def _holds_earlier_output(staging: Staging) -> bool:
    return (staging.folder / PREVIOUS_FOLDER).is_dir() and not os.path.lexists(staging.target.path)


def _clear(staging: Staging, resumed: set[str]) -> None:
    """Remove what an earlier run left, except the run lock, the journal and the shards that are used again."""
    kept = {staging.folder / RUN_LOCK, staging.folder / JOURNAL_FILE, staging.next}
    kept |= {staging.next / file for file in resumed}
    for path in (*staging.folder.iterdir(), *staging.next.iterdir()):
        if path not in kept:
            remove_any(path, staging.disk)


def _keep_journal(staging: Staging, works: Sequence[ShardWork]) -> None:
    """Write the journal anew: a line that a kill cut off would spoil the one after it."""
    lines = []
    for work in works:
        if _is_complete(work) and work.source is not None and work.key is not None:
            entry = identify(work.source, work.key)
            lines.append(journal_line(entry) if entry else b"")
    journal = staging.folder / JOURNAL_FILE
    if lines or journal.exists():
        fresh = journal.with_suffix(".fresh")
        staging.disk.write(fresh, b"".join(lines))
        staging.disk.rename(fresh, journal)


def _missing_parents(path: Path) -> tuple[Path, ...]:
    """The folders above `path` that do not exist, outermost first."""
    return tuple(parent for parent in reversed(path.parents) if not parent.exists())


def _remove_empty(folders: Sequence[Path], disk: Disk) -> None:
    """Remove those of `folders` that are empty, innermost (last) first."""
    for path in reversed(folders):
        with contextlib.suppress(OSError):
            disk.remove_folder(path)
