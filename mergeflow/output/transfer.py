"""Moving bytes and names with the kernel's own means, and without them where it has none.

`copy_range` moves a run of bytes between two files without passing them through this process. `exchange_names` swaps
two folders in one step, so that whoever looks sees the old one or the new one and never neither: renameat2 with
RENAME_EXCHANGE, which Python does not offer.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

from mergeflow.execute.writeback import write_all

KernelCopy = Callable[[int, int, int, int, int], int]

_COPY_BYTES = 16 << 20  # at most per call, so that ctrl-C is answered
_BUFFER_BYTES = 1 << 20
_NOT_OFFERED = (errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.ENOTSUP, errno.EPERM, errno.EBADF, errno.ETXTBSY)

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def kernel_copy(source: int, target: int, count: int, source_offset: int, target_offset: int) -> int:
    """os.copy_file_range, or OSError (ENOSYS) on a system that has none. Returns the bytes copied."""
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    return os.copy_file_range(source, target, count, source_offset, target_offset)


def copy_range(
    source: int, source_offset: int, target: int, target_offset: int, nbytes: int, copy: KernelCopy = kernel_copy
) -> None:
    """Copy `nbytes` bytes between two open files; neither file's own position is used or moved.

    Raises:
        OSError: reading or writing failed, or the source ends before `nbytes` bytes.
    """
    done = 0
    while done < nbytes:
        count = min(_COPY_BYTES, nbytes - done)
        try:
            copied = copy(source, target, count, source_offset + done, target_offset + done)
        except OSError as error:
            if error.errno not in _NOT_OFFERED:
                raise
            copied = 0
        if not copied:  # not offered, or a file system that wrongly says the file has ended: read it ourselves
            _copy_through_buffer(source, source_offset + done, target, target_offset + done, nbytes - done)
            return
        done += copied


def exchange_names(one: Path, other: Path) -> bool:
    """Swap the names of two folders in one step; False when the kernel or the file system cannot.

    Raises:
        OSError: it can, but not these two (one is missing, no permission).
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


def _copy_through_buffer(source: int, source_offset: int, target: int, target_offset: int, nbytes: int) -> None:
    buffer = memoryview(bytearray(min(_BUFFER_BYTES, nbytes)))
    done = 0
    while done < nbytes:
        read = os.preadv(source, [buffer[: nbytes - done]], source_offset + done)
        if not read:
            raise OSError(errno.EIO, f"the file ends {nbytes - done} bytes too early")
        write_all(target, buffer[:read], target_offset + done)
        done += read
