"""The record of a committed patch: what goes where in a model folder that is patched in place, and nothing else.

It is put into the staging folder in one rename, when all that it names is on the disk. From then on the folder is what
the record says it becomes: a run that finds one finishes it first (`mergeflow.output.patching`).

    {"format": 1, "shards": [{"file", "inode", "size", "writes": [[start in the patch, offset in the shard, bytes]]}],
     "files": [path, ...], "removed": [path, ...]}

The bytes of a shard's patch lie in next/SHARD.patch; `files` are moved from next/, and the new lock comes last.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mergeflow.errors import CheckpointError, OutputError
from mergeflow.models.strict_json import read_object
from mergeflow.output.json_fields import count, mapping, sequence, text
from mergeflow.output.lock import LOCK_FILE

PATCH_RECORD = "patch.json"
PATCH_SUFFIX = ".patch"
PATCH_FORMAT = 1

# A line of some 40 bytes for each of 100,000 tensors, ten times over.
_MAX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Write:
    """`nbytes` bytes from byte `start` of a patch file on, to byte `offset` of its shard."""

    start: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class ShardPatch:
    """What is written over a shard: a file of this name, inode and size."""

    file: str
    inode: int
    size: int
    writes: tuple[Write, ...]


@dataclass(frozen=True, slots=True)
class Patch:
    """All that is done to a model folder.

    Args:
        files: paths in the folder, of what is moved there.
        removed: paths in the folder, of files of ours that the new version does without.
    """

    shards: tuple[ShardPatch, ...]
    files: tuple[str, ...]
    removed: tuple[str, ...]


def patch_json(patch: Patch) -> bytes:
    """The record of `patch`."""
    shards = [
        {
            "file": shard.file,
            "inode": shard.inode,
            "size": shard.size,
            "writes": [[write.start, write.offset, write.nbytes] for write in shard.writes],
        }
        for shard in patch.shards
    ]
    contents = {"format": PATCH_FORMAT, "shards": shards, "files": patch.files, "removed": patch.removed}
    return json.dumps(contents).encode() + b"\n"


def read_patch(staging: Path) -> Patch | None:
    """The patch that was committed in a staging folder; None when there is none.

    Raises:
        OutputError: there is a record, and it is damaged.
    """
    path = staging / PATCH_RECORD
    if not path.exists():
        return None
    try:
        contents = read_object(path, _MAX_BYTES, unique=True)
    except CheckpointError as error:
        raise OutputError(f"cannot read what was to be patched: {error}") from error
    try:
        return _parse(contents)
    except OutputError as error:
        raise OutputError(f"{path} cannot be used: {error}") from error


def is_applied(target: Path, fresh: Path) -> bool:
    """Has the folder `target` the lock that its patch ends with, which lies in the folder `fresh`?"""
    try:
        return (target / LOCK_FILE).read_bytes() == (fresh / LOCK_FILE).read_bytes()
    except OSError:
        return False


def _parse(contents: dict[str, object]) -> Patch:
    if contents.get("format") != PATCH_FORMAT:
        raise OutputError(f"its format is {contents.get('format')!r}, this mergeflow reads {PATCH_FORMAT}")
    return Patch(
        tuple(_shard(entry) for entry in sequence(contents.get("shards"), "shards")),
        tuple(_path(entry) for entry in sequence(contents.get("files"), "files")),
        tuple(_path(entry) for entry in sequence(contents.get("removed"), "removed")),
    )


def _shard(entry: object) -> ShardPatch:
    fields = mapping(entry, "a shard")
    file = _path(fields.get("file"))
    if "/" in file:
        raise OutputError(f"shard {file!r} is not a plain file name")
    size = count(fields.get("size"), f"{file}: size")
    writes = tuple(_write(write, size) for write in sequence(fields.get("writes"), f"{file}: writes"))
    return ShardPatch(file, count(fields.get("inode"), f"{file}: inode"), size, writes)


def _write(entry: object, size: int) -> Write:
    numbers = [count(number, "a write") for number in sequence(entry, "a write")]
    if len(numbers) != 3:
        raise OutputError("a write has three numbers")
    start, offset, nbytes = numbers
    if offset + nbytes > size:
        raise OutputError(f"a write of {nbytes} bytes at {offset} goes over the end of its shard")
    return Write(start, offset, nbytes)


def _path(entry: object) -> str:
    path = text(entry, "a path")
    pure = PurePosixPath(path)
    if not pure.parts or pure.is_absolute() or ".." in pure.parts or "\0" in path:
        raise OutputError(f"{path!r} is not a path inside a model folder")
    return path
