"""Digests remembered across runs and processes: a small sqlite file, which may be lost at any time.

    digests_1(file, tensor, digest, proof)      primary key (file, tensor)

`file` says which bytes: ``at:<device>:<inode>:<size>:<mtime_ns>:<ctime_ns>`` for a file on this machine, or
``sha256:<hex>`` for one the Hugging Face hub names, here or anywhere. ctime is in it because mtime can be set: an
archive gives all its files one time, and `cp -p` over a file of the same size would leave everything else as it was.
`tensor` is dtype, shape and byte ranges. `proof` is a hash of the row, so that a row damaged on disk is a row not
found, and not a wrong key.

sqlite's rollback journal (its default) is kept: unlike WAL it also works on network drives, and a process killed while
writing leaves a journal that the next one rolls back. Processes wait for each other's short transactions.

Nothing that goes wrong here may fail a run. Trouble is logged once per call, and the digest is computed again.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path

from blake3 import blake3

from mergeflow.models.records import FileIdentity, TensorSource

_LOG = logging.getLogger(__name__)
_TABLE = "digests_1"
_CREATE = f"""CREATE TABLE IF NOT EXISTS {_TABLE} (
    file TEXT, tensor TEXT, digest TEXT, proof TEXT, PRIMARY KEY (file, tensor)) WITHOUT ROWID"""
_WAIT_SECONDS = 10.0
# A packed tensor lists hundreds of byte ranges; its key is their hash.
_LONGEST_KEY = 128

Row = tuple[str, str]


def file_keys(file: FileIdentity) -> tuple[str, ...]:
    """The names under which a file's digests are kept: its own place first, then the hub's name for its bytes."""
    keys = [] if file.inode == 0 else [f"at:{file.device}:{file.inode}:{file.size}:{file.mtime_ns}:{file.ctime_ns}"]
    return (*keys, file.content) if file.content else tuple(keys)


def tensor_key(source: TensorSource, name: int = 0) -> str:
    """What tells one tensor of a file from the others; segments in other files carry the name of their file.

    `name` picks among the names of those other files, as `file_keys` lists them.
    """
    first = source.segments[0].file
    ranges = []
    for segment in source.segments:
        keys = () if segment.file == first else file_keys(segment.file)
        other = f"@{keys[min(name, len(keys) - 1)]}" if keys else ""
        ranges.append(f"{segment.offset}+{segment.nbytes}{other}")
    key = f"{source.dtype.name} {source.shape} {' '.join(ranges)}"
    return key if len(key) <= _LONGEST_KEY else blake3(key.encode()).hexdigest()


def rows_of(source: TensorSource) -> Iterator[Row]:
    """The (file, tensor) rows that hold a tensor's digest, most trusted first."""
    for position, file in enumerate(file_keys(source.segments[0].file)):
        yield file, tensor_key(source, position)


def recall(path: Path, files: Iterable[str]) -> dict[Row, str]:
    """Every digest remembered for these files; nothing when there is no memory or it cannot be read."""
    found: dict[Row, str] = {}
    if not path.exists():
        return found
    try:
        with closing(_connect(path, "rw")) as database:
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (_TABLE,)).fetchone():
                return found
            for file in files:
                rows = database.execute(f"SELECT tensor, digest, proof FROM {_TABLE} WHERE file = ?", (file,))
                for tensor, digest, proof in rows:
                    if proof == _proof(file, tensor, digest):
                        found[file, tensor] = digest
    except (sqlite3.Error, OSError, UnicodeError) as error:
        _log_trouble(path, error)
    return found


def remember(path: Path, digests: Mapping[Row, str]) -> bool:
    """Keep these digests; False when that was not possible (and has been logged)."""
    rows = [(file, tensor, digest, _proof(file, tensor, digest)) for (file, tensor), digest in digests.items()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(_connect(path, "rwc")) as database, database:
            database.execute(_CREATE)
            database.executemany(f"INSERT OR REPLACE INTO {_TABLE} VALUES (?, ?, ?, ?)", rows)
    except (sqlite3.Error, OSError, UnicodeError) as error:
        _log_trouble(path, error)
        return False
    return True


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=_WAIT_SECONDS)


def _proof(file: object, tensor: object, digest: object) -> str:
    return blake3(f"{file}|{tensor}|{digest}".encode(errors="replace")).hexdigest(length=8)


def _log_trouble(path: Path, error: Exception) -> None:
    _LOG.warning("digests are not remembered, inputs are hashed again: %s: %s; delete it to start afresh", path, error)
