"""Which file it is that we read: the identity a header, a digest and a run must agree on.

A file is known by device, inode, size and modification time, taken from the open file, never from its path: the two
may part between two calls.

A file in the Hugging Face cache has a second name that holds on every machine. The cache keeps it as

    models--org--name/snapshots/<commit>/model.safetensors -> ../../blobs/<sha256 of the bytes>

so the link's target says what the bytes are. Somebody may have written through that link since (a trainer that saves
into the folder it loaded from does), so the name is believed only while the file is no younger than the link: the
hub's library writes the bytes first and links them when they are complete.
"""

from __future__ import annotations

import os
import re

from mergeflow.models.records import FileIdentity

_SHA256 = re.compile(r"[0-9a-f]{64}")
REMOTE = "hub://"


def identify(descriptor: int, path: str) -> FileIdentity:
    """The identity of an open file; `path` is kept, made absolute, to open it again and to name it in messages."""
    status = os.fstat(descriptor)
    return FileIdentity(
        path=os.path.abspath(path),
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        inode=status.st_ino,
        device=status.st_dev,
        ctime_ns=status.st_ctime_ns,
        content=_hub_name(path, status.st_mtime_ns),
    )


def unchanged(file: FileIdentity, descriptor: int) -> bool:
    """Whether the open file is still the one whose header was read."""
    now = os.fstat(descriptor)
    return (now.st_size, now.st_mtime_ns, now.st_ino, now.st_dev) == (
        file.size,
        file.mtime_ns,
        file.inode,
        file.device,
    )


def is_remote(file: FileIdentity) -> bool:
    """Whether the file is known only by the header the hub sent, and must be downloaded before it is read."""
    return file.path.startswith(REMOTE)


def _hub_name(path: str, mtime_ns: int) -> str | None:
    """``sha256:<hex>`` when `path` is a link of the hub's cache to bytes that nobody has changed since."""
    try:
        target = os.readlink(path)
        linked_ns = os.lstat(path).st_mtime_ns
    except OSError:
        return None
    folder, name = os.path.split(target)
    in_cache = os.path.basename(folder) == "blobs" and "snapshots" in os.path.realpath(os.path.dirname(path)).split("/")
    if in_cache and _SHA256.fullmatch(name) and mtime_ns <= linked_ns:
        return f"sha256:{name}"
    return None
