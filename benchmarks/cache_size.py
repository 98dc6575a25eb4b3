"""What a large cache costs: looking 10,000 keys up, `cache du`, and what a run does for its limit.

    python benchmarks/cache_size.py [--entries 100000] [--keys 10000] [--folder DIR]

Entries are records of about 300 bytes, as statistics are, made by plain system calls; what publishing one costs is
measured on some more of them. "du, first" is the first look at a cache that this machine has never seen, with its files
in memory; runs keep the index as they go, so it is rare. Each figure is the median of `--repeat` measurements, in
seconds but for the last two.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from blake3 import blake3

from mergeflow.cache.document import encode_record
from mergeflow.cache.index import BLOCK, index_file, survey
from mergeflow.cache.leases import leasing
from mergeflow.cache.limit import evict, room
from mergeflow.cache.store import Cache

ROOT = Path(__file__).parents[1]
RECORD = {"gram": [[1.0, 0.5], [0.5, 2.0]]}
ABOUT = {"op": "gram", "version": 1}
PUBLISHED = 2000


def key(number: int) -> str:
    """A key as evenly spread as real ones."""
    return blake3(str(number).encode()).hexdigest()


def fill(cache: Cache, count: int) -> None:
    """Makes `count` entries, without the renames of publishing."""
    cache.write_record(key(0), RECORD, ABOUT)
    base = cache.folders.base
    for prefix in range(256):
        os.makedirs(f"{base}/{prefix:02x}", exist_ok=True)
    for number in range(1, count):
        name = key(number)
        folder = f"{base}/{name[:2]}/{name}"
        os.mkdir(folder)
        file = os.open(f"{folder}/zarr.json", os.O_WRONLY | os.O_CREAT, 0o644)
        os.write(file, encode_record(name, RECORD, ABOUT))
        os.close(file)


def measured(cache: Cache, state: Path, count: int, keys: int, repeat: int) -> dict[str, float]:
    """Every figure, by its name."""
    index = index_file(state, cache.root)
    wanted = [key(number * max(1, count // keys)) for number in range(keys)]
    survey(cache.folders, None)  # so that its files are in memory

    def du() -> None:
        command = [sys.executable, "-c", "from mergeflow.cli.main import main; main()", "cache", "du"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "MERGEFLOW_HOME": str(state)}
        subprocess.run([*command, "--cache", str(cache.root)], check=True, env=environment, stdout=subprocess.DEVNULL)

    def du_first() -> None:
        index.unlink(missing_ok=True)
        du()

    def lease() -> None:
        with leasing(cache.folders, wanted):
            pass

    figures = {
        "lookup": median(lambda: cache.lookup(wanted), repeat),
        "du, first": median(du_first, repeat),
        "du": median(du, repeat),
        "room": median(lambda: room(cache, 1 << 50, index), repeat),
        "limit kept": median(lambda: evict(cache, 1 << 50, index), repeat),
        "lease": median(lease, repeat),
    }
    figures |= published_and_evicted(cache, index, count)
    return figures


def published_and_evicted(cache: Cache, index: Path, count: int) -> dict[str, float]:
    """Microseconds that publishing an entry takes, and removing one to keep the limit."""
    began = time.perf_counter()
    for number in range(count, count + PUBLISHED):
        cache.write_record(key(number), RECORD, ABOUT)
    published = time.perf_counter()
    limit = survey(cache.folders, index).taken - PUBLISHED * 2 * BLOCK
    looked = time.perf_counter()
    removed = evict(cache, limit, index).count
    done = time.perf_counter()
    return {
        "publish, us each": (published - began) / PUBLISHED * 1e6,
        "evict, us each": (done - looked) / max(1, removed) * 1e6,
    }


def median(work: Callable[[], object], repeat: int) -> float:
    seconds = []
    for _ in range(repeat):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the cache in a folder that ends with the program (or in `--folder`, used again), and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the cache lies; kept for the next time")
    parser.add_argument("--json", action="store_true")
    wishes = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="mergeflow-cache-size-") as temporary:
        folder = wishes.folder or Path(temporary)
        cache = Cache(folder / "cache")
        if not cache.folders.is_ours():
            fill(cache, wishes.entries)
        figures = measured(cache, folder / "state", wishes.entries, wishes.keys, wishes.repeat)
    if wishes.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name:18} {value:8.3f}")


if __name__ == "__main__":
    main()
