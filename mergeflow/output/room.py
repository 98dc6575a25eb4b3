"""Is there room for what will be written? Asked before a run starts, because the answer after an hour is an insult."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from mergeflow.errors import OutputError

# For the folder's small files, and so that a run that just fits does not leave a disk with nothing on it.
MARGIN_BYTES = 16 << 20


def check_room(folder: Path, nbytes: int, largest: int) -> None:
    """Refuse to start when `nbytes` bytes in files of at most `largest` bytes will not fit where `folder` is.

    Raises:
        OutputError: the disk has less room than that, or this process may not write files of that size.
    """
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    if nbytes + MARGIN_BYTES > free:
        raise OutputError(
            f"not enough room in {folder}: the output needs {readable(nbytes + MARGIN_BYTES)}, {readable(free)} are "
            "free (an earlier output is kept until the new one is complete)"
        )

    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit != resource.RLIM_INFINITY and largest > limit:
        raise OutputError(
            f"not enough room: the output has a file of {readable(largest)}, and this process may write files of at "
            f"most {readable(limit)} (ulimit -f): raise the limit, or set a smaller max_shard_size"
        )


def readable(nbytes: int) -> str:
    """A number of bytes as people write it: 512 B, 4.5 GB (powers of ten, as max_shard_size counts)."""
    if nbytes < 1000:
        return f"{nbytes} B"
    size = nbytes / 1000
    for unit in ("kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB" if size < 999.5 else f"{size:.0f} TB"
