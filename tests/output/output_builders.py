"""Model folders for the tests: tensors whose bytes follow from their keys, a whole run, and disks that fail."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from blake3 import blake3
from safetensors import deserialize

from mergeflow.dtypes import BFLOAT16, DType
from mergeflow.output.copies import copy_run, copy_runs
from mergeflow.output.disk import Disk
from mergeflow.output.layout import OutputTensor, Shard, plan_shards
from mergeflow.output.lock import Lock, LockedModel
from mergeflow.output.publish import NewFile, Published, publish
from mergeflow.output.staging import Staging, complete_shard, open_staging
from mergeflow.output.transfer import write_all

FILES = (NewFile("config.json", b"{}\n"), NewFile("README.md", b"# merged\n"), NewFile("1_Pooling/config.json", b"[]"))
LOCK = Lock(
    "0.1.0", "steps: {}\n", "final", {"t": 0.5}, {"base": LockedModel("./base", None, "d1")}, {"final": "slerp"}
)


def tensor(name: str, key: str | None = None, shape: tuple[int, ...] = (4, 8), dtype: DType = BFLOAT16) -> OutputTensor:
    """A tensor of 64 bytes unless told otherwise, whose key is its name unless told otherwise."""
    return OutputTensor(name, dtype, shape, name if key is None else key)


def tensors(keys: Mapping[str, str] | Iterable[str]) -> tuple[OutputTensor, ...]:
    """Tensors of 64 bytes by name, with these keys (or their names as keys)."""
    named = keys if isinstance(keys, Mapping) else {name: name for name in keys}
    return tuple(tensor(name, key) for name, key in named.items())


def content_of(one: OutputTensor) -> bytes:
    """The bytes that belong to a tensor's key."""
    return blake3(str(one.key).encode()).digest(length=one.nbytes)


def write_places(staging: Staging) -> None:
    """Do what an executor does: write or copy every tensor, shard by shard."""
    for work in staging.works:
        if not work.is_to_write:
            continue
        for run in copy_runs(work.places):
            copy_run(run)
        for place in work.places:
            if place.copy_from is None:
                with place.extent.file.open("rb+") as file:
                    write_all(file.fileno(), content_of(place.tensor), place.extent.offset)
        complete_shard(staging, work.shard)


def write_model(
    path: Path,
    planned: Sequence[OutputTensor],
    limit: int = 128,
    files: Sequence[NewFile] = FILES,
    lock: Lock = LOCK,
    disk: Disk | None = None,
    *,
    patch: bool = False,
) -> Published:
    """A whole run: two tensors of 64 bytes to a shard unless told otherwise; in place when asked to `patch`."""
    with open_staging(path, plan_shards(planned, limit), disk or UnsyncedDisk(), patch=patch) as staging:
        write_places(staging)
        return publish(staging, files, lock)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_tensors(folder: Path) -> dict[str, bytes]:
    """The tensors of a model folder as the safetensors library reads them, with a check that no name occurs twice."""
    found: dict[str, bytes] = {}
    for path in folder.glob("*.safetensors"):
        for name, entry in deserialize(path.read_bytes()):
            assert name not in found
            found[name] = bytes(entry["data"])
    return found


def expected_tensors(planned: Sequence[OutputTensor]) -> dict[str, bytes]:
    return {one.name: content_of(one) for one in planned}


def states(staging_or_works: Staging | Sequence[object]) -> list[str]:
    works = staging_or_works.works if isinstance(staging_or_works, Staging) else staging_or_works
    return [work.state for work in works]  # type: ignore[attr-defined]


def shards_of(names: Iterable[str], limit: int = 128) -> tuple[Shard, ...]:
    return plan_shards(tensors(names), limit)


OPERATIONS = tuple(name for name in vars(Disk) if not name.startswith("_"))


class UnsyncedDisk(Disk):
    """A disk that does not wait for the platter: what tests look at is in the page cache, and waiting is slow."""

    def sync(self, path: Path) -> None:
        path.stat()


class WatchedDisk(UnsyncedDisk):
    """A disk that calls `before(number, operation, arguments)` ahead of each operation, counting from 1."""

    def __init__(self, before: Callable[[int, str, tuple[object, ...]], None]) -> None:
        self.before = before
        self.count = 0

    def __getattribute__(self, name: str) -> object:
        method = super().__getattribute__(name)
        if name not in OPERATIONS:
            return method

        def watched(*arguments: object) -> object:
            self.count += 1
            self.before(self.count, name, arguments)
            return method(*arguments)

        return watched


class FailingDisk(WatchedDisk):
    """A disk whose operation `number` fails (and all later ones, when it `stays` full); a write leaves a byte."""

    def __init__(self, number: int, stays: bool = False) -> None:
        super().__init__(self._fail)
        self.number = number
        self.stays = stays
        self.failed = ""

    def _fail(self, count: int, operation: str, arguments: tuple[object, ...]) -> None:
        if count == self.number or (self.stays and count > self.number):
            self.failed = self.failed or operation
            if operation in ("write", "append", "create_shard"):
                with open(str(arguments[0]), "ab") as file:
                    file.write(b"x")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class ExchangelessDisk(UnsyncedDisk):
    """A disk on which two names cannot be swapped in one step."""

    def exchange(self, one: Path, other: Path) -> bool:
        return False


class FailingExchangelessDisk(FailingDisk, ExchangelessDisk):
    """A disk that fails, and on which a folder is replaced by two renames."""
