"""What is at the place where a model shall be written, and whether a run may replace it.

A folder may be replaced when it is empty or when mergeflow wrote it (it has a lock that can be read). Anything else is
somebody's work and is refused before a run starts, with what to do about it. Looking changes nothing.

The target may itself be a link to a folder: it is resolved once, here, and everything happens beside what it leads to.
Links inside the target are never followed.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mergeflow.errors import OutputError
from mergeflow.output.layout import Shard
from mergeflow.output.lock import LOCK_FILE, Lock, read_lock
from mergeflow.output.patch_record import is_applied, read_patch
from mergeflow.output.sample import sample_digest

NEXT_FOLDER = "next"

TargetKind = Literal["absent", "empty", "ours"]

_WEIGHTS = re.compile(r"(model|(delta))(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


@dataclass(frozen=True, slots=True)
class Target:
    """A place that may be written.

    Args:
        path: absolute, links resolved.
        kind: nothing is there, an empty folder, or an earlier output of mergeflow.
        lock: of the earlier output.
        intact: its shards that are as they were written.
        warnings: what was done to the earlier output by others, one line each.
    """

    path: Path
    kind: TargetKind
    lock: Lock | None = None
    intact: tuple[Shard, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def staging(self) -> Path:
        """The folder beside the target in which the next version is built."""
        return self.path.parent / f".{self.path.name}.mergeflow"


def inspect_target(path: str | Path) -> Target:
    """What is at `path`; reads names, sizes, headers and the lock, and changes nothing.

    Raises:
        OutputError: a run may not write there: a file, a folder that is not ours, a mount point, no permission.
    """
    resolved = Path(os.path.realpath(path))
    if os.path.ismount(resolved):
        raise OutputError(
            f"{path} is a mount point, which cannot be replaced in one step: choose a folder in it, such as "
            f"{resolved / 'model'}"
        )
    _check_writable(resolved)
    try:
        names = {entry.name for entry in os.scandir(resolved)}
    except FileNotFoundError:
        return Target(resolved, "absent")
    except NotADirectoryError as error:
        raise OutputError(f"{path} is a file: choose another folder, or remove it") from error
    except OSError as error:
        raise OutputError(f"cannot read the output folder {path}: {error.strerror}") from error
    if not names:
        return Target(resolved, "empty")
    patched = _inspect_patched(resolved)
    if patched is not None:
        return patched
    return _inspect_folder(resolved, names)


def is_between_versions(path: str | Path) -> bool:
    """Whether a folder is in the middle of being patched in place: it has no lock, and the next run finishes it."""
    return _inspect_patched(Path(os.path.realpath(path))) is not None


def _inspect_patched(folder: Path) -> Target | None:
    """A folder that is in the middle of being patched, as it will be: the next run to it finishes that first."""
    staging = Target(folder, "ours").staging
    if read_patch(staging) is None or is_applied(folder, staging / NEXT_FOLDER):
        return None
    lock = read_lock(staging / NEXT_FOLDER)
    if lock is None:
        return None
    warning = f"{folder} is between two versions (a run that patched it was killed): the next run finishes that first"
    return Target(folder, "ours", lock, lock.shards, (warning,))


def _inspect_folder(folder: Path, names: set[str]) -> Target:
    lock = read_lock(folder)
    if lock is None:
        raise OutputError(
            f"{folder} holds files that mergeflow did not write (it has no {LOCK_FILE}): choose another folder, or "
            "remove this one"
        )

    strange = strangers(lock, names)
    if strange:
        raise OutputError(
            f"{folder} holds weights that mergeflow did not write ({', '.join(strange)}), and loaders would mix them "
            "with the merged ones: move them away, or choose another folder"
        )

    written = (folder / LOCK_FILE).stat().st_mtime_ns
    intact = tuple(
        shard for shard in lock.shards if is_intact(folder / shard.file, shard, written, lock.samples.get(shard.file))
    )
    unchanged = {shard.file for shard in intact}
    changed = [shard.file for shard in lock.shards if shard.file not in unchanged]
    warnings = tuple(f"{folder / file} {_why(file, lock)}: it is rebuilt" for file in changed)
    return Target(folder, "ours", lock, intact, warnings)


def strangers(lock: Lock, names: Iterable[str]) -> list[str]:
    """Those of the names in an output's folder that a loader of it would read, and that mergeflow did not write."""
    known = {shard.file for shard in lock.shards} | set(lock.files)
    found = ((name, _WEIGHTS.fullmatch(name)) for name in sorted(set(names) - known))
    return [name for name, match in found if match is not None and (match[2] is None or lock.type == "delta")]


def _why(file: str, lock: Lock) -> str:
    if file not in lock.samples:
        return f"cannot be recognised ({LOCK_FILE} has no sample of its bytes)"
    return "was changed or removed since it was written"


def is_intact(path: Path, shard: Shard, written: int, sample: str | None) -> bool:
    """Is the file still the shard that was written there: a plain file, no younger than `written`, same bytes?

    Of the bytes, size and header are compared, and the `sample` that the lock states (None: it states none, and
    nothing is intact). That finds a shard of another model, whatever its times. `written` is the time of the lock in
    nanoseconds: the lock is written last, so that a shard younger than its lock was changed by somebody, perhaps where
    the sample does not look. The price is that a copy whose times are new (`cp -r`) may be written again where a move
    or a copy that keeps them (`cp -a`, `rsync -a`) is recognised: time lost is better than an edit mistaken for ours.
    """
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size != shard.size or status.st_mtime_ns > written:
            return False
        with path.open("rb") as file:
            if file.read(len(shard.header)) != shard.header:
                return False
        return sample_digest(path, shard) == sample
    except OSError:
        return False


def _check_writable(target: Path) -> None:
    """The folder that will hold the target (or the nearest one that exists) must let us create folders in it."""
    parent = target.parent
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir():
        raise OutputError(f"cannot create {target}: {parent} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {target}: no permission to create folders in {parent}")
