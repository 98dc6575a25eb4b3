"""Every way in which this room changes the file system, one small method each.

All writing goes through a `Disk` that is passed in, so that a test can let any single operation fail, or kill the
process in the middle of it, and look at what is left. Nothing here decides anything.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from mergeflow.output.patch_record import Write
from mergeflow.output.transfer import copy_range, exchange_names


class Disk:
    """The real file system. Every method may raise OSError."""

    def make_folder(self, path: Path) -> None:
        """Create one folder; fine when it exists. Its parent must."""
        path.mkdir(exist_ok=True)

    def create_shard(self, path: Path, header: bytes, size: int) -> None:
        """Create a file of `size` bytes that starts with `header`; the rest is a hole, and reads as zeros.

        The hole costs no time and no room. (`posix_fallocate` would reserve the room, but makes the writes that
        follow 5 to 10 times slower.)
        """
        with path.open("wb") as file:
            file.write(header)
            file.truncate(size)

    def write(self, path: Path, content: bytes) -> None:
        """Create or replace a file."""
        path.write_bytes(content)

    def append(self, path: Path, line: bytes) -> None:
        """Add a line to a file."""
        with path.open("ab") as file:
            file.write(line)

    def copy(self, source: Path, path: Path) -> None:
        """Create `path` with the content of `source` (of the file it leads to, when it is a link)."""
        with source.open("rb") as origin, path.open("wb") as file:
            copy_range(origin.fileno(), 0, file.fileno(), 0, os.fstat(origin.fileno()).st_size)

    def patch(self, source: Path, path: Path, writes: Sequence[Write]) -> None:
        """Write parts of the file `source` over an existing file, which keeps its size and its inode."""
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            with source.open("rb") as origin:
                for write in writes:
                    copy_range(origin.fileno(), write.start, descriptor, write.offset, write.nbytes)
        finally:
            os.close(descriptor)

    def link(self, source: Path, path: Path) -> None:
        """Give the file `source` a second name; copy it where the file system cannot. Links are kept as links."""
        try:
            os.link(source, path, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS or not stat.S_ISREG(source.lstat().st_mode):
                raise
            self.copy(source, path)
            shutil.copymode(source, path)

    def rename(self, source: Path, path: Path) -> None:
        """Rename a file or folder; an existing file or an empty folder of that name is replaced."""
        source.rename(path)

    def exchange(self, one: Path, other: Path) -> bool:
        """Swap the names of two folders in one step; False when this system cannot."""
        return exchange_names(one, other)

    def copy_mode(self, source: Path, path: Path) -> None:
        """Give `path` the permissions of `source`."""
        shutil.copymode(source, path)

    def remove(self, path: Path) -> None:
        """Remove a file; fine when there is none."""
        path.unlink(missing_ok=True)

    def remove_folder(self, path: Path) -> None:
        """Remove an empty folder."""
        path.rmdir()

    def remove_tree(self, path: Path) -> None:
        """Remove a folder and all that is in it; links are removed, not followed."""
        shutil.rmtree(path)

    def sync(self, path: Path) -> None:
        """Wait until a file (or the list of names of a folder) is on the disk."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            # Some network file systems cannot sync a folder; they have no later moment to offer either.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(descriptor)


_NO_HARD_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS)
