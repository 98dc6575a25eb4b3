"""Which shards in the staging folder are complete: one JSON line each, added when the shard is on the disk.

A line names the shard, its key, and the file it was (inode, size, time of the last write). A file that no longer is
that file does not count: the name may by now belong to something else, such as the earlier output that took the place
of a staging folder killed in the middle of publishing. A line that was cut off does not count either, nor one that no
run of ours wrote.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import asdict, dataclass
from pathlib import Path

from mergeflow.errors import CheckpointError
from mergeflow.models.strict_json import parse_object

JOURNAL_FILE = "journal.jsonl"

# A line has a file name (255 bytes at most), a key and three numbers; a model has some thousand shards at most.
_MAX_LINE_BYTES = 4096
_MAX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Completed:
    """A complete shard: the key of its content, and the identity of its file."""

    file: str
    key: str
    inode: int
    size: int
    mtime_ns: int


def identify(path: Path, key: str) -> Completed | None:
    """The entry for the file at `path`, as it is now; None when there is no plain file."""
    try:
        status = path.lstat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return Completed(path.name, key, status.st_ino, status.st_size, status.st_mtime_ns)


def journal_line(entry: Completed) -> bytes:
    """The line that records `entry`."""
    return json.dumps(asdict(entry)).encode() + b"\n"


def read_journal(journal: Path, folder: Path) -> dict[str, str]:
    """The complete shards in `folder`: file name by key, without those whose file was replaced since."""
    try:
        with journal.open("rb") as file:
            lines = file.read(_MAX_BYTES).splitlines()
    except OSError:
        return {}
    entries = [entry for entry in map(_parse, lines) if entry is not None]
    return {entry.key: entry.file for entry in entries if identify(folder / entry.file, entry.key) == entry}


def _parse(line: bytes) -> Completed | None:
    if len(line) > _MAX_LINE_BYTES:
        return None
    try:
        fields = parse_object(line, JOURNAL_FILE, unique=True)
    except CheckpointError:
        return None
    match fields:
        case {"file": str(file), "key": str(key), "inode": int(inode), "size": int(size), "mtime_ns": int(mtime_ns)}:
            plain = len(fields) == 5 and os.path.basename(file) == file and "\0" not in file
            return Completed(file, key, inode, size, mtime_ns) if plain else None
    return None
