"""A file system that fails at its n-th change, for everything that Python does to files below one folder.

Outputs are written through `output.disk` and cache entries through `Cache.create`, but not everything is: digests,
history, leases, locks and scratch files have ways of their own, and a new one may be added any day. So this shim lies
below them all: in the functions of `os`, in `open`, in the exchange of two names and in sqlite. Files that are opened
for writing count every write that reaches the system.

    with failing(folder, number, errno.ENOSPC) as system: ...
    with disturbed(folder, number, action): ...         nothing fails, but `action` is done before that change
    system.failed       what failed (or was disturbed): "rename /.../next", or None when there were fewer changes
"""

from __future__ import annotations

import builtins
import io
import os
import re
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

# What changes files, and where among the arguments the path or descriptor is that tells whose they are.
CHANGES = {
    "mkdir": 0,
    "rename": 1,
    "replace": 1,
    "link": 1,
    "symlink": 1,
    "unlink": 0,
    "remove": 0,
    "rmdir": 0,
    "chmod": 0,
    "utime": 0,
    "truncate": 0,
    "ftruncate": 0,
    "write": 0,
    "pwrite": 0,
    "fsync": 0,
    "fdatasync": 0,
    "copy_file_range": 1,
    "sendfile": 0,
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# A full disk still lets files go.
FREES = frozenset({"unlink", "remove", "rmdir"})


@dataclass
class System:
    """Which change fails, and what has become of it.

    Args:
        number: of the change that fails, from 1 on.
        fault: the errno.
        stays: all later changes but removals fail too, as on a disk that is full.
    """

    folder: str
    number: int
    fault: int
    stays: bool = False
    action: Callable[[], object] | None = None
    seen: list[str] = field(default_factory=list)
    failed: str | None = None
    guard: threading.Lock = field(default_factory=threading.Lock)

    def change(self, what: str, where: object) -> None:
        """Count a change to `where`, a path or a descriptor; OSError when it is its turn to fail."""
        path = self._path(where)
        if path is None or not path.startswith(self.folder):
            return
        if self.number < 0:
            return
        with self.guard:
            self.seen.append(f"{what} {path[len(self.folder) :]}")
            again = self.stays and len(self.seen) > self.number and what not in FREES
            if len(self.seen) != self.number and not again:
                return
            if self.failed is None:
                self.failed = self.seen[-1]
            if self.action is not None:
                self.number = -1  # what the action does is not counted
                self.action()
                return
        raise OSError(self.fault, os.strerror(self.fault), path)

    def _path(self, where: object) -> str | None:
        if isinstance(where, int):
            try:
                return os.readlink(f"/proc/self/fd/{where}")
            except OSError:
                return None
        return os.path.abspath(os.fsdecode(where)) if isinstance(where, (str, bytes, os.PathLike)) else None


class _File(io.FileIO):
    """A file whose writes are counted."""

    system: System

    def write(self, block: object) -> int:
        self.system.change("write", self.fileno())
        return super().write(block)  # type: ignore[arg-type]

    def truncate(self, size: int | None = None) -> int:
        self.system.change("truncate", self.fileno())
        return super().truncate(size)


def _changing(system: System, name: str, place: int) -> Callable[..., object]:
    real = getattr(os, name)

    def change(*arguments: object, **named: object) -> object:
        folder = named.get("dir_fd")
        where = arguments[place] if len(arguments) > place else None
        if isinstance(folder, int) and isinstance(where, (str, bytes)):  # rmtree walks by descriptors
            where = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(where))
        system.change(name, where)
        return real(*arguments, **named)

    return change


def _opening(system: System) -> Callable[..., int]:
    real = os.open

    def opened(path: object, flags: int, *rest: object, **named: object) -> int:
        if flags & _WRITES and not flags & getattr(os, "O_PATH", 0):
            system.change("open", path)
        return real(path, flags, *rest, **named)  # type: ignore[call-overload, no-any-return]

    return opened


def _opening_files(system: System) -> Callable[..., object]:
    real = io.open

    def opened(file: object, mode: str = "r", buffering: int = -1, *rest: object, **named: object) -> object:
        if not isinstance(file, (str, bytes, os.PathLike)) or not set(mode) & set("wxa+"):
            return real(file, mode, buffering, *rest, **named)  # type: ignore[call-overload]
        system.change("open", file)
        raw = _File(os.fspath(file), mode.replace("b", "").replace("t", ""))  # type: ignore[arg-type]
        raw.system = system
        if "b" not in mode:
            return io.TextIOWrapper(io.BufferedWriter(raw), encoding=named.get("encoding"))  # type: ignore[arg-type]
        if buffering == 0:
            return raw
        size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
        return io.BufferedRandom(raw, size) if "+" in mode else io.BufferedWriter(raw, size)  # type: ignore[arg-type]

    return opened


@contextmanager
def failing(folder: Path, number: int, fault: int, *, stays: bool = False) -> Iterator[System]:
    """A system whose change `number` below `folder` fails with `fault`. One at a time in a process."""
    with _patched(System(str(folder), number, fault, stays)) as system:
        yield system


@contextmanager
def disturbed(folder: Path, number: int, action: Callable[[], object]) -> Iterator[System]:
    """A system in which somebody else does `action` just before change `number` below `folder`."""
    with _patched(System(str(folder), number, 0, action=action)) as system:
        yield system


@contextmanager
def _patched(system: System) -> Iterator[System]:
    import mergeflow.output.disk as disk

    exchange, connect = disk.exchange_names, sqlite3.connect

    def exchanged(one: Path, other: Path) -> bool:
        system.change("exchange", other)
        return exchange(one, other)

    def connected(database: str, *rest: object, **named: object) -> sqlite3.Connection:
        try:
            if "mode=ro" not in database:
                system.change("sqlite", database.removeprefix("file://").partition("?")[0])
        except OSError as error:
            raise sqlite3.OperationalError("disk I/O error") from error
        return connect(database, *rest, **named)  # type: ignore[arg-type, no-any-return]

    with ExitStack() as stack:
        patches = [mock.patch.object(os, name, _changing(system, name, at)) for name, at in CHANGES.items()]
        patches += [mock.patch.object(os, "open", _opening(system))]
        opened = _opening_files(system)
        patches += [mock.patch.object(module, "open", opened) for module in (io, builtins)]
        patches += [mock.patch.object(disk, "exchange_names", exchanged)]
        patches += [mock.patch.object(sqlite3, "connect", connected)]
        for patch in patches:
            stack.enter_context(patch)
        yield system


def changes(folder: Path, work: Callable[[], object]) -> list[str]:
    """The changes below `folder` that some work makes, in order: ``rename /next``."""
    with failing(folder, sys.maxsize, 0) as system:
        work()
    return system.seen


def chosen(seen: list[str], step: int) -> list[int]:
    """Numbers of changes: the first of each kind (names without their digits), every `step`-th, and the last three."""
    kinds: dict[str, int] = {}
    for number, change in enumerate(seen, start=1):
        kinds.setdefault(re.sub(r"[0-9a-f]*[0-9][0-9a-f.]*", "#", change), number)
    return sorted({*kinds.values(), *range(1, len(seen) + 1, step), *range(max(1, len(seen) - 2), len(seen) + 1)})
