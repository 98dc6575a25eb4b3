"""One entry of the cache as it lies on disk: is it there, is it whole, what is it.

An entry counts as present only when its zarr.json is as it was written and, for a tensor, the file of chunks has
exactly the size that the shape demands. Values themselves are checked when they are read, chunk by chunk.

What the file system says becomes one of three answers: *absent* (nothing there), *damaged* (CorruptEntry: something is
there that cannot be used; the run drops it and computes again), or an OSError that is nobody's fault in the entry (no
file handles left, say) and is passed on.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from mergeflow.cache.document import Document, EntryKind, TensorDocument, decode
from mergeflow.cache.folders import Folders
from mergeflow.errors import CorruptEntry

OnDamage = Callable[[CorruptEntry], None]

DOCUMENT_NAME = "zarr.json"

# Errors that speak of this one entry: removed while it was read, not what it should be, unreadable blocks or rights.
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE})
_UNUSABLE = frozenset({errno.EISDIR, errno.EIO, errno.ELOOP, errno.EACCES, errno.EPERM})


@dataclass(frozen=True, slots=True)
class EntryInfo:
    """An intact entry.

    Args:
        kind: a small record or a tensor.
        nbytes: bytes of its files.
        about: what the writer told about it: op, version, step. For people.
        created: when it was written, seconds since the epoch.
        last_used: when it was last opened for reading (or written).
    """

    key: str
    kind: EntryKind
    nbytes: int
    about: Mapping[str, object] = field(default_factory=dict)
    created: float = 0.0
    last_used: float = 0.0


def examine(folder: str, key: str) -> EntryInfo | None:
    """What the entry `key` in `folder` is; None when it is absent or of an unknown format.

    Raises:
        CorruptEntry: it is there, but damaged or incomplete.
    """
    found = read_document(folder, key)
    if found is None:
        return None
    document, nbytes, created = found
    kind: EntryKind = "record"
    if isinstance(document, TensorDocument):
        kind = "tensor"
        size = _size_of_chunks(folder, key, document)
        if size is None:
            return None
        nbytes += size
    return EntryInfo(key, kind, nbytes, document.about, created, _last_used(folder, created))


def intact(folders: Folders, keys: Iterable[str], on_damage: OnDamage) -> Iterator[EntryInfo]:
    """The intact entries among `keys`; `on_damage` is told of each that is there but damaged."""
    for key in keys:
        try:
            info = examine(folders.entry(key), key)
        except CorruptEntry as error:
            on_damage(error)
        else:
            if info is not None:
                yield info


def is_intact(folder: str, key: str) -> bool:
    """Whether `folder` holds the whole entry `key`, in a format this version reads."""
    try:
        return examine(folder, key) is not None
    except CorruptEntry:
        return False


def read_document(folder: str, key: str) -> tuple[Document, int, float] | None:
    """The entry's document, its size in bytes and the time it was written; None when absent or of an unknown format.

    Raises:
        CorruptEntry: it is there, but damaged.
    """
    try:
        text, created = _read(f"{folder}/{DOCUMENT_NAME}")
    except OSError as error:
        if _is_gone(error, folder):
            return None
        raise as_corrupt(key, DOCUMENT_NAME, error) from error
    document = decode(key, text)
    return None if document is None else (document, len(text), created)


def as_corrupt(key: str, name: str, error: OSError) -> Exception:
    """The error to raise for `error`, met while reading file `name` of entry `key`: CorruptEntry, or `error` itself."""
    if error.errno in _GONE:
        return CorruptEntry(key, f"{name} is missing")
    if error.errno in _UNUSABLE:
        return CorruptEntry(key, f"{name} cannot be read: {error.strerror}")
    return error


def check_size(key: str, document: TensorDocument, found: os.stat_result) -> None:
    """CorruptEntry unless the file of chunks has exactly the size that the tensor's shape demands."""
    expected = document.layout.file_bytes
    if not stat.S_ISREG(found.st_mode) or found.st_size != expected:
        raise CorruptEntry(key, f"its chunks take {found.st_size} bytes where {expected} are needed")


def _size_of_chunks(folder: str, key: str, document: TensorDocument) -> int | None:
    """Bytes of the file of chunks; None when the whole entry was removed since its document was read."""
    layout = document.layout
    if layout.count == 0:
        return 0
    try:
        found = os.stat(f"{folder}/{layout.file_name}")
    except OSError as error:
        if _is_gone(error, folder):
            return None
        raise as_corrupt(key, layout.file_name, error) from error
    check_size(key, document, found)
    return found.st_size


def _is_gone(error: OSError, folder: str) -> bool:
    """Whether `error` came of there being no such entry, rather than of one with something missing."""
    return error.errno in _GONE and not os.path.lexists(folder)


def _read(path: str) -> tuple[bytes, float]:
    """A file's bytes and the time of its last change; plain system calls, since lookups make thousands of them."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = os.fstat(handle)
        text = os.read(handle, found.st_size + 1)
        while len(text) < found.st_size and (more := os.read(handle, found.st_size + 1 - len(text))):
            text += more
    finally:
        os.close(handle)
    return text, found.st_mtime


def _last_used(folder: str, created: float) -> float:
    """Readers set the folder's time; until one does, it is that of the making of the folder, just before `created`."""
    try:
        return max(created, os.stat(folder).st_mtime)
    except OSError:
        return created
