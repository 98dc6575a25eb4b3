"""One run at a time may write an output: the lock file in its staging folder, held with flock.

The kernel lets go of the lock when the process dies, however it dies, so a lock never has to be broken by hand. The run
that is done removes the lock file with the folder; one that was waiting to open it may then hold a file that has
no name any more, so only a lock on the file that now has the name counts.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from io import FileIO
from pathlib import Path

from mergeflow.errors import OutputError
from mergeflow.output.disk import Disk

RUN_LOCK = "lock"

_HELD_BY_OTHERS = (errno.EWOULDBLOCK, errno.EACCES)
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # some parallel file systems; then nobody is refused


def hold(folder: Path, disk: Disk) -> FileIO:
    """Create the staging folder and its lock file, and lock it.

    Raises:
        OutputError: another process holds it, or the folder is a link.
        OSError: it cannot be created.
    """
    path = folder / RUN_LOCK
    while True:
        if folder.is_symlink():
            raise OutputError(f"{folder} is a link, and mergeflow follows none here: remove it")
        disk.make_folder(folder)
        try:
            file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "r+")
        except FileNotFoundError:
            continue  # the run before us has just removed the folder
        try:
            _lock(file, path)
        except BaseException:
            file.close()
            raise
        if is_held(folder, file):
            return file
        file.close()


def is_held(folder: Path, file: FileIO) -> bool:
    """Is `file` open, and still the one called ``lock`` in `folder`?"""
    if file.closed:
        return False
    try:
        return os.path.samestat(os.fstat(file.fileno()), (folder / RUN_LOCK).lstat())
    except OSError:
        return False


def dismantle(folder: Path, disk: Disk) -> None:
    """Remove a staging folder that we hold, its lock file last: until then nobody else begins to write in it.

    Raises:
        OSError: something in it cannot be removed.
    """
    for path in folder.iterdir():
        if path.name != RUN_LOCK:
            remove_any(path, disk)
    disk.remove(folder / RUN_LOCK)
    with contextlib.suppress(OSError):  # the next run may already be there
        disk.remove_folder(folder)


def remove_any(path: Path, disk: Disk) -> None:
    """Remove a file, a link (not what it leads to), or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        disk.remove_tree(path)
    else:
        disk.remove(path)


def _lock(file: FileIO, path: Path) -> None:
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD_BY_OTHERS:
            raise OutputError(
                f"another run is writing this output (it holds {path}): wait for it, or stop it"
            ) from error
        if error.errno not in _NO_LOCKS_HERE:
            raise
