"""Making the staging folder the model folder: everything is put in place first, then one rename shows it.

    1. kept shards get a second name in next/ (a hard link: no byte is copied)
    2. the index and the small files are written or copied there, and synced
    3. what users added to the earlier output (evaluation results, notes) gets a second name there too
    4. the lock is written and synced, then the folder's own list of names
    5. next/ and the target exchange names; what then is called next/ is the earlier output, and is removed

Before step 5 the earlier output is untouched, after it the new one is complete; there is nothing between. A file of
ours that somebody edited is not thrown away when it is replaced: it stays beside the new one as ``NAME.bak``. When
nothing at all would change, nothing is touched.

A run that patches the target in place does 2 and 3 in the same way, and then decides for the patch: see `patching`.

A file system that cannot exchange two names (renameat2 is Linux's, and not every file system has it) gets two renames;
a run killed between them leaves no target, and the next run puts the earlier one back before it does anything else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from blake3 import blake3

from mergeflow.errors import OutputError, RunError
from mergeflow.output.carry import carry_over
from mergeflow.output.compare import ShardWork
from mergeflow.output.failures import reported
from mergeflow.output.files import NewFile
from mergeflow.output.layout import index_file, index_json
from mergeflow.output.lock import LOCK_FILE, Lock, lock_json
from mergeflow.output.patch_record import Patch
from mergeflow.output.patching import commit, finish, shard_patches
from mergeflow.output.run_lock import dismantle
from mergeflow.output.sample import PatchedTensors, sample_digest
from mergeflow.output.staging import PREVIOUS_FOLDER, Staging
from mergeflow.output.text import text_bytes


@dataclass(frozen=True, slots=True)
class Published:
    """What publishing did.

    Args:
        changed: False when the target already was exactly this, and was left alone.
        lock: as it stands in the folder.
        carried: files that users had added to the earlier output, and that are in the new one.
        warnings: what its user should know, one line each.
    """

    path: Path
    changed: bool
    lock: Lock
    carried: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def publish(staging: Staging, files: Sequence[NewFile], lock: Lock) -> Published:
    """Make the staged shards, the index, `files` and `lock` the target, in one step; releases the staging folder.

    Raises:
        RunError: a shard is not complete, or the disk failed. The target is what it was before (or is in the middle
            of being patched, which the message says), and the staging folder is still held (`abandon` it).
    """
    target = staging.target
    with reported(RunError, f"write {target.path}"):
        contents = _contents(staging, files)
        shards = tuple(work.shard for work in staging.works)
        complete = replace(lock, shards=shards, samples=_samples(staging), files=_digests(contents))
        if _is_already(staging, complete):
            _let_go(staging)
            return Published(target.path, changed=False, lock=complete)

        if not staging.is_in_place:
            _link_kept_shards(staging)
        _write_files(staging, contents)
        complete = replace(complete, files=_digests({path: staging.next / path for path in contents}))
        carried = _carry(staging, target.path, staging.next, complete)
        _write_lock(staging, complete)

        earlier: Path | None = None
        if staging.is_in_place:
            _patch(staging, contents, carried)
        else:
            earlier = _swap(staging)
        if earlier is not None:  # what was added to it while the new one was being put in place
            carried |= _carry(staging, earlier, target.path, complete, done=carried)
    warnings = (*target.warnings, *_edited(carried), *_let_go(staging))
    return Published(target.path, True, complete, tuple(carried.values()), warnings)


def _contents(staging: Staging, files: Sequence[NewFile]) -> dict[str, bytes | Path]:
    """Every small file by its path; the index is ours to add. Shards must be complete by now."""
    for work in staging.works:
        if work.state != "kept" and not (staging.next / work.file).is_file():
            raise RunError(f"{work.shard.file} is not complete, so {staging.target.path} cannot be published")

    shards = [work.shard for work in staging.works]
    index = index_file(shards)
    reserved = {LOCK_FILE, index, *(shard.file for shard in shards)}
    contents: dict[str, bytes | Path] = {index: text_bytes(index_json(shards))} if len(shards) > 1 else {}
    for file in files:
        path = PurePosixPath(file.path)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise OutputError(f"{file.path!r} is not a path inside a model folder")
        if file.path in reserved or file.path in contents:
            raise OutputError(f"two files of the output are called {file.path}")
        contents[file.path] = file.content
    return contents


def _samples(staging: Staging) -> dict[str, str]:
    """The sample of every shard."""
    return {work.shard.file: _sample(staging, work) for work in staging.works}


def _sample(staging: Staging, work: ShardWork) -> str:
    """Of a kept shard what the earlier lock states, for it was just found to be true."""
    if work.state == "kept" and work.source is not None and staging.target.lock is not None:
        return staging.target.lock.samples[work.source.name]
    if work.state != "patched":
        return sample_digest(staging.next / work.file, work.shard)
    offsets = {place.tensor.name: place.extent.offset for place in work.places}
    patched = PatchedTensors(staging.next / work.file, offsets)
    return sample_digest(staging.target.path / work.shard.file, work.shard, patched)


def _digests(contents: Mapping[str, bytes | Path]) -> dict[str, str]:
    return {path: digest(content) for path, content in contents.items()}


def digest(content: bytes | Path) -> str:
    """The blake3 of some bytes or of a file's, in hexadecimal."""
    hasher = blake3()
    return (hasher.update(content) if isinstance(content, bytes) else hasher.update_mmap(content)).hexdigest()


def _is_already(staging: Staging, lock: Lock) -> bool:
    """Is the target, file by file, what publishing would make it?"""
    target = staging.target
    earlier = target.lock
    if earlier is None or len(target.intact) != len(earlier.shards):
        return False
    if (target.path / LOCK_FILE).read_bytes() != text_bytes(lock_json(lock)):
        return False
    return all(_holds(target.path / path, expected) for path, expected in lock.files.items())


def _holds(path: Path, expected: str) -> bool:
    return path.is_file() and not path.is_symlink() and digest(path) == expected


def _link_kept_shards(staging: Staging) -> None:
    for work in staging.works:
        if work.state == "kept" and work.source is not None:
            final = staging.next / work.shard.file
            staging.disk.remove(final)
            staging.disk.link(work.source, final)


def _write_files(staging: Staging, contents: Mapping[str, bytes | Path]) -> None:
    for path, content in contents.items():
        final = staging.next / path
        for folder in reversed(final.relative_to(staging.next).parents[:-1]):
            staging.disk.make_folder(staging.next / folder)
        if isinstance(content, bytes):
            staging.disk.write(final, content)
        else:
            staging.disk.copy(content, final)
    for path in contents:
        staging.disk.sync(staging.next / path)


def _carry(staging: Staging, earlier: Path, to: Path, lock: Lock, done: Collection[str] = ()) -> dict[str, str]:
    earlier_lock = staging.target.lock
    return {} if earlier_lock is None else carry_over(earlier, earlier_lock, to, lock, staging.disk, done)


def _edited(carried: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(
        f"{path} was edited since it was written: the edited file is kept as {name}"
        for path, name in carried.items()
        if name != path
    )


def _write_lock(staging: Staging, lock: Lock) -> None:
    final = staging.next / LOCK_FILE
    staging.disk.write(final, text_bytes(lock_json(lock)))
    staging.disk.sync(final)
    staging.disk.sync(staging.next)


def _swap(staging: Staging) -> Path | None:
    """Put next/ in the target's place; returns where the earlier output is now, if there was one."""
    disk, target, fresh = staging.disk, staging.target.path, staging.next
    if staging.target.kind != "absent":
        disk.copy_mode(target, fresh)
    if staging.target.kind != "ours":
        disk.rename(fresh, target)  # onto nothing or an empty folder; fails when somebody has put files there
        disk.sync(target.parent)
        return None

    if disk.exchange(fresh, target):
        earlier = fresh
    else:
        earlier = staging.folder / PREVIOUS_FOLDER
        disk.rename(target, earlier)
        try:
            disk.rename(fresh, target)
        except BaseException:
            disk.rename(earlier, target)
            raise
    disk.sync(target.parent)
    return earlier


def _patch(staging: Staging, contents: Mapping[str, bytes | Path], carried: Mapping[str, str]) -> None:
    """Decide for the patch, and apply it."""
    target = staging.target
    moved = (*contents, *(name for path, name in carried.items() if name != path))
    ours = target.lock.files if target.lock is not None else {}
    removed = tuple(path for path in ours if path not in contents and path not in carried)
    patch = Patch(shard_patches(target.path, staging.works), moved, removed)
    commit(staging.folder, patch, staging.disk)
    what = f"finish patching {target.path}, which is between two versions until a run to it has finished that"
    with reported(RunError, what):
        finish(target.path, staging.folder, staging.disk)


def _let_go(staging: Staging) -> tuple[str, ...]:
    """Remove the staging folder. The output is complete by now, so a failure is only worth a warning."""
    try:
        dismantle(staging.folder, staging.disk)
    except OSError as error:
        return (f"could not remove {staging.folder} ({error.strerror}): the next run will",)
    finally:
        staging.run_lock.close()
    return ()
