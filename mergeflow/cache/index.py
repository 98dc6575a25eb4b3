"""What is in a cache, without opening a hundred thousand files to say so: a memory of this machine's, never trusted.

    entries_2(prefix, stamp, details, entries, proof)       one row for each folder <root>/v1/ab; primary key prefix

The cache itself has no index, so that any number of machines may share one and a folder copied by hand is a cache. This
one lies in the state folder, is derived, and may be lost at any time. It must be fast, and it may never be wrong:

- The folder ab changes its times whenever an entry comes or goes, because both are a rename. A row holds as long as
  the folder's `stamp` (inode, links, size, mtime, ctime) is the same; else the folder is listed again.
- When it is listed again, an entry that was known is still the same when its zarr.json is the same file with the same
  times: entries are replaced, never changed. Only the others are opened.
- A time says nothing while the file system's clock has not ticked since ("racily clean", as `models/digests.py` has
  it): a stamp or a file younger than a tick when it was looked at is not remembered. The clock is this machine's or
  the disk's, whichever is behind. One that was set back makes times lie in the future: not remembered either.

`proof` is a hash of the row: one that was damaged on disk counts as not there. So does an index that cannot be opened
or written; then everything is listed, which is slow and right.

Not seen are bytes changed inside an entry by something else than a rename (a flipped bit, a truncated file): readers
check what they read, and `care.verify` reads everything.
"""

from __future__ import annotations

import json
import os
import sqlite3
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from blake3 import blake3

from mergeflow.cache.entry import DOCUMENT_NAME, examine
from mergeflow.cache.folders import Folders, latest_doubtless_time
from mergeflow.errors import CorruptEntry
from mergeflow.models.digests import COARSE_TICK_NS, FINE_TICK_NS, SECOND

ListedKind = Literal["record", "tensor", "damaged"]

KINDS: tuple[ListedKind, ...] = ("record", "tensor", "damaged")

_TABLE = "entries_2"
_CREATE = f"""CREATE TABLE IF NOT EXISTS {_TABLE} (
    prefix TEXT PRIMARY KEY, stamp TEXT, details TEXT, entries BLOB, proof TEXT) WITHOUT ROWID"""
_WAIT_SECONDS = 5.0
# key, kind, bytes, number of the operation; inode, size, mtime and ctime of zarr.json (zeros: look again).
_ENTRY = struct.Struct("<32sBQHQQqq")
_UNSETTLED = (0, 0, 0, 0)

_Identity = tuple[int, int, int, int]


# What a file system gives out at least, on most of them.
BLOCK = 4096


class Listed(NamedTuple):
    """One entry. `nbytes` are those of its files (0 when it is damaged), `operation` what its writer called it."""

    key: str
    kind: ListedKind
    nbytes: int
    operation: str


@dataclass(frozen=True, slots=True)
class Total:
    """Sums over entries: how many, the bytes of their files, and what they take on the disk."""

    count: int = 0
    nbytes: int = 0
    taken: int = 0

    def __add__(self, other: Total) -> Total:
        return Total(self.count + other.count, self.nbytes + other.nbytes, self.taken + other.taken)


class _Kept(NamedTuple):
    listed: Listed
    identity: _Identity


@dataclass(frozen=True, slots=True)
class _Row:
    """What is known of the folder of one prefix. Its entries stay packed until somebody asks for them.

    Args:
        stamp: empty when the next reader must look again.
        totals: by kind, in the order of `KINDS`.
        operations: the names that entries refer to by number.
    """

    stamp: str
    totals: tuple[Total, ...]
    operations: tuple[str, ...]
    packed: bytes

    def listed(self) -> Iterator[Listed]:
        names = self.operations
        for key, kind, nbytes, number, *_ in _ENTRY.iter_unpack(self.packed):
            yield Listed(key.hex(), KINDS[kind], nbytes, names[number])

    def kept(self) -> Iterator[_Kept]:
        identities = ((inode, size, mtime, ctime) for *_, inode, size, mtime, ctime in _ENTRY.iter_unpack(self.packed))
        yield from map(_Kept, self.listed(), identities)


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in a cache. Sums cost nothing; the list of entries is made when it is asked for."""

    rows: tuple[_Row, ...]

    def entries(self) -> list[Listed]:
        """Every entry by rising key, damaged ones included."""
        return [listed for row in self.rows for listed in row.listed()]

    def totals(self) -> dict[ListedKind, Total]:
        """Sums by kind."""
        sums = {kind: Total() for kind in KINDS}
        for row in self.rows:
            for kind, total in zip(KINDS, row.totals, strict=True):
                if total.count:
                    sums[kind] += total
        return sums

    def taken_by(self, keys: Set[str]) -> int:
        """Bytes that the entries of some keys take on the disk."""
        wanted = {bytes.fromhex(key) for key in keys}
        found = (entry for row in self.rows for entry in _ENTRY.iter_unpack(row.packed) if entry[0] in wanted)
        return sum(taken(Listed(key.hex(), KINDS[kind], nbytes, "")) for key, kind, nbytes, *_ in found)

    @property
    def taken(self) -> int:
        """Bytes that all entries take on the disk."""
        return sum(total.taken for total in self.totals().values())


def totals_of(entries: Iterable[Listed]) -> dict[ListedKind, Total]:
    """Sums by kind of some entries."""
    sums = {kind: Total() for kind in KINDS}
    for entry in entries:
        sums[entry.kind] += Total(1, entry.nbytes, taken(entry))
    return sums


def taken(entry: Listed) -> int:
    """Bytes an entry takes on the disk: its files in whole blocks, and a block for its folder."""
    files = 2 if entry.kind == "tensor" else 1
    whole = -(-entry.nbytes // BLOCK) * BLOCK
    return max(whole, files * BLOCK) + BLOCK


def index_file(state: Path, root: Path) -> Path:
    """Where this machine keeps its index of the cache `root`."""
    name = blake3(os.fsencode(os.path.realpath(root))).hexdigest(16)
    return state / "caches" / f"{name}.sqlite"


def survey(folders: Folders, index: Path | None, clock: Callable[[Folders], float] = latest_doubtless_time) -> Contents:
    """What is in a cache; reads of it only what has changed.

    Args:
        index: the file that remembers; None to look at everything.
        clock: seconds since 1970 by which times of files are judged; asked only when something has changed.
    """
    remembered = _load(index) if index is not None else {}
    began: int | None = None
    rows: dict[str, _Row] = {}
    changed: dict[str, _Row] = {}
    for prefix in folders.prefixes():
        found = _stat(f"{folders.base}/{prefix}")
        row = remembered.get(prefix)
        if row is None or found is None or _stamp(found) != row.stamp:
            if began is None:
                began = int(clock(folders) * SECOND)
            stamp = _stamp(found) if found is not None and _is_settled(found, began) else ""
            row = _packed(stamp, list(_look(folders, prefix, row, began)))
            if row != remembered.get(prefix):
                changed[prefix] = row
        rows[prefix] = row
    gone = remembered.keys() - rows.keys()
    if index is not None and (changed or gone):
        _save(index, changed, gone)
    return Contents(tuple(rows.values()))


def _look(folders: Folders, prefix: str, before: _Row | None, began: int) -> Iterator[_Kept]:
    """Lists the folder of a prefix, opening only entries that are not known from before."""
    known = {kept.listed.key: kept for kept in before.kept()} if before is not None else {}
    for key in folders.keys(prefix):
        folder = f"{folders.base}/{prefix}/{key}"
        identity = _identity(f"{folder}/{DOCUMENT_NAME}", began)
        kept = known.get(key)
        if kept is not None and kept.identity == identity != _UNSETTLED:
            yield kept
            continue
        listed = _examined(folder, key)
        if listed is not None:
            yield _Kept(listed, identity)


def _examined(folder: str, key: str) -> Listed | None:
    try:
        info = examine(folder, key)
    except CorruptEntry:
        return Listed(key, "damaged", 0, "?")
    return None if info is None else Listed(key, info.kind, info.nbytes, str(info.about.get("op", "?")))


def _stat(folder: str) -> os.stat_result | None:
    try:
        return os.stat(folder)
    except OSError:
        return None


def _stamp(found: os.stat_result) -> str:
    """What changes when an entry comes or goes."""
    return f"{found.st_ino}:{found.st_nlink}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}"


def _identity(path: str, now: int) -> _Identity:
    """What tells a file from another that takes its place."""
    try:
        found = os.lstat(path)
    except OSError:
        return _UNSETTLED
    if not _is_settled(found, now):
        return _UNSETTLED
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _is_settled(found: os.stat_result, now: int) -> bool:
    tick = COARSE_TICK_NS if found.st_ctime_ns % SECOND == 0 else FINE_TICK_NS
    return max(found.st_mtime_ns, found.st_ctime_ns) + tick < now


def _load(index: Path) -> dict[str, _Row]:
    """The rows that are whole; none when there is no index or it cannot be read."""
    if not index.exists():
        return {}
    try:
        with closing(_connect(index, "ro")) as database:
            rows = database.execute(f"SELECT prefix, stamp, details, entries, proof FROM {_TABLE}").fetchall()
    except (sqlite3.Error, OSError, UnicodeError):
        return {}
    found = {}
    for row in rows:
        with suppress(ValueError, TypeError, LookupError):
            found[row[0]] = _decoded(row)
    return found


def _save(index: Path, changed: Mapping[str, _Row], gone: Sequence[str] | set[str]) -> None:
    """Remembers; an index that cannot be written is one that does not help, and a damaged one is begun anew."""
    rows = [_encoded(prefix, row) for prefix, row in changed.items()]
    for attempt in range(2):
        try:
            index.parent.mkdir(parents=True, exist_ok=True)
            with closing(_connect(index, "rwc")) as database, database:
                database.execute(_CREATE)
                database.executemany(f"INSERT OR REPLACE INTO {_TABLE} VALUES (?, ?, ?, ?, ?)", rows)
                database.executemany(f"DELETE FROM {_TABLE} WHERE prefix = ?", [(prefix,) for prefix in gone])
            return
        except sqlite3.OperationalError:
            return  # locked by another process for long, read-only, no room
        except sqlite3.DatabaseError:
            if attempt == 0:
                with suppress(OSError):
                    index.unlink()
        except (OSError, UnicodeError):
            return


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=_WAIT_SECONDS)


def _packed(stamp: str, kept: Sequence[_Kept]) -> _Row:
    """A row of these entries."""
    operations = tuple({it.listed.operation: None for it in kept})
    numbers = {operation: number for number, operation in enumerate(operations)}
    totals = totals_of(it.listed for it in kept)
    packed = []
    for entry, identity in kept:
        kind, number = KINDS.index(entry.kind), numbers[entry.operation]
        packed.append(_ENTRY.pack(bytes.fromhex(entry.key), kind, entry.nbytes, number, *identity))
    return _Row(stamp, tuple(totals.values()), operations, b"".join(packed))


def _encoded(prefix: str, row: _Row) -> tuple[str, str, str, bytes, str]:
    totals = [(it.count, it.nbytes, it.taken) for it in row.totals]
    details = json.dumps({"operations": row.operations, "totals": totals})
    return prefix, row.stamp, details, row.packed, _proof(prefix, row.stamp, details, row.packed)


def _decoded(row: tuple[str, str, str, bytes, str]) -> _Row:
    """ValueError, TypeError or LookupError when it is not what was written."""
    prefix, stamp, details, packed, proof = row
    if proof != _proof(prefix, stamp, details, packed):
        raise ValueError("a row was damaged")
    found = json.loads(details)
    return _Row(stamp, tuple(Total(*numbers) for numbers in found["totals"]), tuple(found["operations"]), packed)


def _proof(prefix: str, stamp: str, details: str, packed: bytes) -> str:
    hasher = blake3(f"{prefix}|{stamp}|{details}|".encode())
    hasher.update(packed)
    return hasher.hexdigest(16)
