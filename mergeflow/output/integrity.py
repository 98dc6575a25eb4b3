"""Is an output still what its lock says, as far as that shows without computing anything?

shards       there, of the size, with the header (so with every tensor's name, dtype, shape and place)
samples      the bytes at a few places of every tensor (`output.sample`)
small files  the digest of every byte
strangers    weights that a loader would read and that the lock does not know
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mergeflow.errors import CheckpointError, counted, some
from mergeflow.models.header import read_header
from mergeflow.output.layout import Shard
from mergeflow.output.lock import LOCK_FILE, Lock
from mergeflow.output.publish import digest
from mergeflow.output.sample import sample_digest
from mergeflow.output.target import strangers

FaultKind = Literal["file", "shard", "tensor", "key", "input", "recipe"]


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is not as the lock says: what kind of thing, its name, and how it differs."""

    kind: FaultKind
    name: str
    message: str

    def __str__(self) -> str:
        return f"{self.name} {self.message}"


@dataclass(frozen=True, slots=True)
class FilesChecked:
    """What looking at the files has shown; `sound` are the shards whose tensors lie where the lock says."""

    faults: tuple[Fault, ...]
    sound: tuple[Shard, ...]


def check_files(folder: Path, lock: Lock) -> FilesChecked:
    """Compare the files in `folder` with its lock. Reads headers, samples and small files."""
    faults: list[Fault] = []
    sound = []
    for shard in lock.shards:
        found = list(_shard_faults(folder / shard.file, shard, lock.samples.get(shard.file)))
        faults += found
        if not any(fault.name == shard.file and fault.message != SAMPLE for fault in found):
            sound.append(shard)
    if folder.is_dir():
        names = os.listdir(folder)
        faults += [
            Fault("file", name, f"is not in {LOCK_FILE}, and a loader would read it") for name in strangers(lock, names)
        ]
    faults += [fault for path, expected in lock.files.items() for fault in _file_faults(folder, path, expected)]
    return FilesChecked(tuple(faults), tuple(sound))


SAMPLE = "has other bytes than were written"


def _shard_faults(path: Path, shard: Shard, sample: str | None) -> Iterator[Fault]:
    if not path.is_file():
        yield Fault("shard", shard.file, "is missing" if not os.path.lexists(path) else "is not a file")
        return
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            is_header = stream.read(len(shard.header)) == shard.header
        if size != shard.size:
            yield Fault("shard", shard.file, f"has {size} bytes instead of {shard.size}")
        if not is_header:
            yield Fault("shard", shard.file, f"has another header than was written: {_what_differs(path, shard)}")
        elif size == shard.size and sample is not None and sample_digest(path, shard) != sample:
            yield Fault("shard", shard.file, SAMPLE)
    except OSError as error:
        yield Fault("shard", shard.file, f"cannot be read: {error.strerror or error}")


def _what_differs(path: Path, shard: Shard) -> str:
    """How the header of a file differs from a shard's, by its tensors."""
    try:
        found = read_header(path).tensors
    except CheckpointError as error:
        return str(error)
    planned = {placed.tensor.name: placed.tensor for placed in shard.tensors}
    missing = [name for name in planned if name not in found]
    strange = [name for name in found if name not in planned]
    other = [
        name
        for name, it in planned.items()
        if name in found and (found[name].dtype, found[name].shape) != (it.dtype, it.shape)
    ]
    parts = [
        f"{counted(len(names), 'tensor')} {what} ({some(names)})"
        for names, what in ((missing, "missing"), (strange, "too many"), (other, "of another dtype or shape"))
        if names
    ]
    return ", ".join(parts) or "the same tensors at other places"


def _file_faults(folder: Path, path: str, expected: str) -> Iterator[Fault]:
    place = folder / path
    parts = Path(path).parts
    if Path(path).is_absolute() or ".." in parts:
        yield Fault("file", path, f"is no path inside the folder: {LOCK_FILE} is made up")
    elif not place.is_file():
        yield Fault("file", path, "is missing")
    else:
        try:
            if digest(place) != expected:
                yield Fault("file", path, "was edited since it was written")
        except OSError as error:
            yield Fault("file", path, f"cannot be read: {error.strerror or error}")
