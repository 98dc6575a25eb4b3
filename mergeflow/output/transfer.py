"""Moving bytes and names with the kernel's own means, and without them where it has none.

`copy_range` moves a run of bytes between two files without passing them through this process: where the file system
lets two files share blocks (btrfs, XFS), they share them, and nothing is copied at all. `exchange_names` swaps
two folders in one step, so that whoever looks sees the old one or the new one and never neither: renameat2 with
RENAME_EXCHANGE, which Python does not offer.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path

from mergeflow.execute.writeback import start_writeback, write_all

KernelCopy = Callable[[int, int, int, int, int], int]
Copied = Callable[[int], None]

_COPY_BYTES = 16 << 20  # at most per call, so that ctrl-C is answered
# File systems share whole blocks only; that of nearly all of them. Another one refuses, and the bytes are copied.
_SHARED_BLOCK = 4096
_FICLONERANGE = 0x4020940D
_BUFFER_BYTES = 1 << 20
# Smaller parts are left to the sync at the end.
_NUDGE_BYTES = 1 << 20
_FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
_NOT_OFFERED = (errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.ENOTSUP, errno.EPERM, errno.EBADF, errno.ETXTBSY)

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def kernel_copy(source: int, target: int, count: int, source_offset: int, target_offset: int) -> int:
    """os.copy_file_range, or OSError (ENOSYS) on a system that has none. Returns the bytes copied."""
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    return os.copy_file_range(source, target, count, source_offset, target_offset)


def kernel_clone(source: int, target: int, count: int, source_offset: int, target_offset: int) -> int:
    """Have two files share `count` bytes (FICLONERANGE), or OSError where they cannot. Returns `count`."""
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    fcntl.ioctl(target, _FICLONERANGE, struct.pack("qQQQ", source, source_offset, count, target_offset))
    return count


def nobody_counts(count: int) -> None:
    """For a copy whose progress nobody watches."""


def copy_range(
    source: int,
    source_offset: int,
    target: int,
    target_offset: int,
    nbytes: int,
    copy: KernelCopy = kernel_copy,
    clone: KernelCopy = kernel_clone,
    copied: Copied = nobody_counts,
) -> None:
    """Copy `nbytes` bytes between two open files; neither file's own position is used or moved.

    `copied` is told of every part that has arrived, and may raise to end the copy.

    Raises:
        OSError: reading or writing failed, or the source ends before `nbytes` bytes.
    """
    head = -source_offset % _SHARED_BLOCK
    middle = (nbytes - head) // _SHARED_BLOCK * _SHARED_BLOCK
    done = 0
    if middle > 0 and (source_offset - target_offset) % _SHARED_BLOCK == 0:
        try:
            clone(source, target, middle, source_offset + head, target_offset + head)
        except OSError as error:
            if error.errno in _FATAL:
                raise
        else:
            _copy(source, source_offset, target, target_offset, head, copy, copied)
            copied(middle)
            done = head + middle
    _copy(source, source_offset + done, target, target_offset + done, nbytes - done, copy, copied)


def _copy(
    source: int, source_offset: int, target: int, target_offset: int, nbytes: int, copy: KernelCopy, copied: Copied
) -> None:
    """Have the kernel copy; it begins to write what has arrived, so that the sync at the end finds little to do."""
    done = 0
    while done < nbytes:
        wanted = min(_COPY_BYTES, nbytes - done)
        try:
            count = copy(source, target, wanted, source_offset + done, target_offset + done)
        except OSError as error:
            if error.errno not in _NOT_OFFERED:
                raise
            count = 0
        if not count:  # not offered, or a file system that wrongly says the file has ended: read it ourselves
            _copy_through_buffer(source, source_offset + done, target, target_offset + done, nbytes - done, copied)
            return
        if count >= _NUDGE_BYTES:
            start_writeback(target, target_offset + done, count)
        done += count
        copied(count)


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


def _copy_through_buffer(
    source: int, source_offset: int, target: int, target_offset: int, nbytes: int, copied: Copied
) -> None:
    buffer = memoryview(bytearray(min(_BUFFER_BYTES, nbytes)))
    done = 0
    while done < nbytes:
        read = os.preadv(source, [buffer[: nbytes - done]], source_offset + done)
        if not read:
            raise OSError(errno.EIO, f"the file ends {nbytes - done} bytes too early")
        write_all(target, buffer[:read], target_offset + done)
        done += read
        copied(read)
