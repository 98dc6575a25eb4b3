"""What this machine does in a second, measured once and remembered: the numbers behind ``cache: auto``.

    write       blocks through the cache's own writer, then fdatasync: the disk's rate, not that of the page cache
    read        the same entry, read and checked by the cache's own reader
    load        a piece of a model file
    arithmetic  an addition of two float32 blocks, against what the table of operations says of it
    entries     some of one element each, written and read

Both reads go past the page cache where the system lets go of pages when asked (as on another day), so that neither
looks better than it will be. All of it takes under half a second, and is done by a run only, when seconds of computing
hang on it. The result is rounded to two digits and lies in the state folder, for each machine, device of the cache and
device of the models; it is measured again after a month. A damaged or missing file is the same as none: then the rates
of `graph.policy` hold that are called nominal.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import date
from pathlib import Path
from typing import BinaryIO

from mergeflow.cache.folders import delete
from mergeflow.cache.store import Cache, create_file
from mergeflow.dtypes import by_name
from mergeflow.errors import CheckpointError, MergeflowError
from mergeflow.graph.policy import NOMINAL, Rates
from mergeflow.models.strict_json import read_object

VERSION = 1
DAYS = 30
MOST_REMEMBERED = 32
MOST_FILE_BYTES = 1_000_000

MiB = 1 << 20
BLOCK_BYTES = 4 * MiB
MOST_BYTES = 64 * MiB
# Seconds for each of writing and reading; a slow disk is measured with fewer bytes.
WRITE_SECONDS = 0.12
READ_SECONDS = 0.06
ENTRIES = 16

# Of `numpy.add` into a third block, all three in the second cache: what the table says of `add`, times its two inputs.
ADDED_ELEMENTS = 1 << 16
ADD_NANOSECONDS = 0.24
ADD_REPEATS = 200

# What no machine is beyond: bytes a second, a factor, seconds. A file that says otherwise is damaged.
_LIMITS = {
    "write": (1e5, 1e12),
    "read": (1e5, 1e12),
    "load": (1e5, 1e12),
    "arithmetic": (1e-3, 1e3),
    "entry_write": (1e-7, 10.0),
    "entry_read": (1e-7, 10.0),
}


def place_of(cache: Path, model: Path | None) -> str:
    """What remembered rates belong to: this machine, the cache's device, and that of the models."""
    return f"{platform.node()}/{os.cpu_count()}/{_device(cache)}/{_device(model) if model is not None else 0}"


def remembered(state: Path, place: str, today: date) -> Rates | None:
    """The rates of a place that were measured at most a month ago; None when there are none."""
    return next((rates for name, rates in _all(state).items() if name == place and _is_fresh(rates, today)), None)


def remember(state: Path, place: str, rates: Rates) -> None:
    """Keep the rates of a place. A state folder that cannot be written is no reason to fail."""
    found = {name: it for name, it in _all(state).items() if name != place}
    newest = sorted(found, key=lambda name: found[name].measured)[-(MOST_REMEMBERED - 1) :]
    places = {name: asdict(found[name]) for name in newest} | {place: asdict(rates)}
    path = _file(state)
    draft = path.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps({"version": VERSION, "places": places}, indent=1), encoding="utf-8")
        draft.replace(path)


def measure(cache: Cache, model: Path | None, today: date) -> Rates | None:
    """This machine's rates now; None when the cache cannot be written to.

    Args:
        cache: where entries are written for the trial, and removed.
        model: a file whose reading is measured; a small one, or None, counts as read like an entry.
    """
    try:
        work = cache.folders.new_work()
        try:
            write, read, entry_write, entry_read = _of_entries(Path(work))
        finally:
            delete(work)
    except (OSError, MergeflowError):
        return None
    load = _of_file(model) if model is not None else None
    return _within_limits(
        Rates(write, read, load or read, _of_arithmetic(), entry_write, entry_read, measured=today.isoformat())
    )


def _all(state: Path) -> dict[str, Rates]:
    try:
        places = read_object(_file(state), MOST_FILE_BYTES, unique=False)
    except CheckpointError:
        return {}
    entries = places.get("places")
    if places.get("version") != VERSION or not isinstance(entries, dict):
        return {}
    return {name: rates for name, entry in entries.items() if (rates := _rates(entry)) is not None}


def _rates(entry: object) -> Rates | None:
    """The rates that an entry of the file holds, if it holds nothing else."""
    if not isinstance(entry, dict) or set(entry) != {it.name for it in fields(Rates)}:
        return None
    measured = entry["measured"]
    numbers = {name: entry[name] for name in _LIMITS}
    if not isinstance(measured, str) or not all(type(number) in (int, float) for number in numbers.values()):
        return None
    if not all(low <= numbers[name] <= high for name, (low, high) in _LIMITS.items()):
        return None
    return _made({name: float(number) for name, number in numbers.items()}, measured)


def _made(numbers: Mapping[str, float], measured: str) -> Rates:
    """Rates of numbers by name: all that `_LIMITS` names."""
    return replace(NOMINAL, **numbers, measured=measured)


def _is_fresh(rates: Rates, today: date) -> bool:
    try:
        age = (today - date.fromisoformat(rates.measured)).days
    except ValueError:
        return False
    return 0 <= age <= DAYS  # a day to come: one of the two clocks was wrong


def _file(state: Path) -> Path:
    return state / "rates.json"


def _device(path: Path) -> int:
    """The device of a file, or of the nearest folder above it that is there."""
    for there in (path, *path.parents):
        with contextlib.suppress(OSError):
            return there.stat().st_dev
    return 0


def _within_limits(rates: Rates) -> Rates:
    """The rates with two digits each: more are noise, and would make plans look different for nothing."""
    numbers: Mapping[str, float] = {name: getattr(rates, name) for name in _LIMITS}
    rounded = {name: float(f"{numbers[name]:.1e}") for name in numbers}
    return _made({name: min(max(rounded[name], low), high) for name, (low, high) in _LIMITS.items()}, rates.measured)


@dataclass
class _Opened:
    """Creates files as the cache does, and keeps the last one, to wait for its bytes to be on the disk."""

    last: list[BinaryIO] = field(default_factory=list)

    def __call__(self, path: str) -> BinaryIO:
        self.last[:] = [create_file(path)]
        return self.last[0]


def _of_entries(folder: Path) -> tuple[float, float, float, float]:
    """(bytes written a second, bytes read a second, seconds to write an entry, seconds to read one)."""
    opened = _Opened()
    cache = Cache(folder, create=opened)
    block = os.urandom(MiB) * (BLOCK_BYTES // MiB)  # a disk that compresses finds nothing to compress
    began = time.perf_counter()
    for number in range(ENTRIES):
        with cache.create_tensor(_key(number), by_name("uint8"), (1,), {}) as writer:
            writer.write(b"\0")
            writer.publish()
    entry_write = (time.perf_counter() - began) / ENTRIES
    began = time.perf_counter()
    for number in range(ENTRIES):
        with cache.open_tensor(_key(number)) as reader:
            reader.read_into(0, bytearray(1))
    entry_read = (time.perf_counter() - began) / ENTRIES
    seconds = _write(cache, opened, _key(ENTRIES), block, 1)
    count = int(min(max(WRITE_SECONDS / max(seconds, 1e-9), 1), MOST_BYTES // BLOCK_BYTES))
    seconds = _write(cache, opened, _key(ENTRIES + 1), block, count)
    return count * BLOCK_BYTES / seconds, _read(cache, _key(ENTRIES + 1), count), entry_write, entry_read


def _key(number: int) -> str:
    return f"{number:064x}"


def _write(cache: Cache, opened: _Opened, key: str, block: bytes, count: int) -> float:
    """Seconds to write an entry of so many blocks, until they are on the disk."""
    began = time.perf_counter()
    with cache.create_tensor(key, by_name("uint8"), (count * len(block),), {}) as writer:
        for _ in range(count):
            writer.write(block)
        opened.last[0].flush()
        os.fdatasync(opened.last[0].fileno())
        seconds = time.perf_counter() - began
        _forget(opened.last[0].fileno(), 0, 0)
        writer.publish()
    return max(seconds, 1e-9)


def _read(cache: Cache, key: str, count: int) -> float:
    """Bytes a second of reading an entry of so many blocks."""
    buffer = bytearray(BLOCK_BYTES)
    with cache.open_tensor(key) as reader:
        return _rate(lambda number: reader.read_into(number * BLOCK_BYTES, buffer), count)


def _of_file(path: Path) -> float | None:
    """Bytes a second of reading the middle of a file; None when it is small, or cannot be read."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        count = min(os.fstat(file).st_size, MOST_BYTES) // BLOCK_BYTES
        first = (os.fstat(file).st_size - count * BLOCK_BYTES) // 2
        _forget(file, first, count * BLOCK_BYTES)
        buffer = bytearray(BLOCK_BYTES)
        return _rate(lambda number: os.preadv(file, [buffer], first + number * BLOCK_BYTES), count) if count else None
    except OSError:
        return None
    finally:
        os.close(file)


def _rate(read: Callable[[int], object], count: int) -> float:
    """Bytes a second of reading blocks, as many of `count` as there is time for."""
    began = time.perf_counter()
    done = 0
    while done < count and (done == 0 or time.perf_counter() - began < READ_SECONDS):
        read(done)
        done += 1
    return done * BLOCK_BYTES / max(time.perf_counter() - began, 1e-9)


def _forget(file: int, start: int, nbytes: int) -> None:
    """Ask the system to drop a file's pages; one that cannot (memory as a disk) has no disk to read from either."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(file, start, nbytes, os.POSIX_FADV_DONTNEED)


def _of_arithmetic() -> float:
    """What an operation takes here, as a multiple of the table's cost; other work on the machine does not show."""
    import numpy as np

    first, second, out = (np.ones(ADDED_ELEMENTS, np.float32) for _ in range(3))
    best = math.inf
    for _ in range(ADD_REPEATS):
        began = time.perf_counter_ns()
        np.add(first, second, out=out)
        best = min(best, time.perf_counter_ns() - began)
    return best / ADDED_ELEMENTS / ADD_NANOSECONDS
