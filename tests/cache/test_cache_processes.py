"""Several processes at one cache: publishing together, dying in the middle, clearing under a reader."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from cache_values import SMALL_CHUNK, key, put_tensor, raw_bytes, read_whole, work_in_progress

import mergeflow
from mergeflow.cache.care import clear
from mergeflow.cache.folders import ABANDONED_AFTER_SECONDS
from mergeflow.cache.store import Cache
from mergeflow.dtypes import FLOAT32
from mergeflow.errors import CorruptEntry

SHAPE = (40, 3)

# Every program is given the cache's folder, and says or waits for a line where the test must know how far it is.
PRELUDE = """
import sys
from pathlib import Path
from cache_values import SMALL_CHUNK, key, put_tensor, raw_bytes
from mergeflow.cache.care import clear
from mergeflow.cache.store import Cache
from mergeflow.dtypes import FLOAT32
cache = Cache(Path(sys.argv[1]), chunk_bytes=SMALL_CHUNK)

def say_and_wait(word):
    print(word, flush=True)
    sys.stdin.readline()
"""

PUBLISH_ALL = """
say_and_wait("ready")
for number in range(60):
    cache.write_record(key(number), {"number": number}, {})
    put_tensor(cache, key(1000 + number), FLOAT32, (40, 3), seed=number)
"""

WRITE_HALF = """
writer = cache.create_tensor(key(1), FLOAT32, (40, 3), {})
writer.write(raw_bytes(FLOAT32, (40, 3))[:300])
say_and_wait("half")
writer.write(raw_bytes(FLOAT32, (40, 3))[300:])
writer.publish()
"""

FILL_AND_CLEAR = """
say_and_wait("ready")
for turn in range(20):
    for number in range(4):
        cache.write_record(key(number), {"number": number}, {})
        put_tensor(cache, key(1000 + number), FLOAT32, (40, 3), seed=number)
    clear(cache)
"""


@contextmanager
def process(program: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Runs `program` beside the test until the block ends."""
    paths = os.pathsep.join([str(Path(mergeflow.__file__).parents[1]), str(Path(__file__).parent)])
    running = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + program, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    with running:
        try:
            yield running
        finally:
            running.kill()


def wait_for(running: subprocess.Popen[str], word: str) -> None:
    assert running.stdout is not None
    assert running.stdout.readline().strip() == word


def go_on(running: subprocess.Popen[str]) -> None:
    assert running.stdin is not None
    running.stdin.write("\n")
    running.stdin.flush()


def expect_all(cache: Cache) -> None:
    for number in range(60):
        assert cache.read_record(key(number)) == {"number": number}
        assert np.array_equal(read_whole(cache, key(1000 + number)), raw_bytes(FLOAT32, SHAPE, seed=number))
    assert work_in_progress(cache) == []


def test_two_processes_publish_the_same_keys(tmp_path: Path) -> None:
    """Two processes that make the folder and publish the same entries at once end with one intact set of them."""
    with process(PUBLISH_ALL, tmp_path / "new") as one, process(PUBLISH_ALL, tmp_path / "new") as other:
        for running in (one, other):
            wait_for(running, "ready")
        for running in (one, other):
            go_on(running)
        assert (one.wait(), other.wait()) == (0, 0)
    expect_all(Cache(tmp_path / "new"))


def test_threads_publish_the_same_keys(tmp_path: Path) -> None:
    """Threads of one process that publish the same entries at once end with one intact set of them."""
    cache = Cache(tmp_path / "new", chunk_bytes=SMALL_CHUNK)

    def publish(number: int) -> None:
        cache.write_record(key(number), {"number": number}, {})
        put_tensor(cache, key(1000 + number), FLOAT32, SHAPE, seed=number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(publish, [number for number in range(60) for _ in range(4)]))
    expect_all(cache)


def test_a_killed_writer_leaves_only_rubbish(tmp_path: Path) -> None:
    """After kill -9 in the middle of a tensor there is no entry, and a sweep removes what lay in .tmp."""
    cache = Cache(tmp_path)
    with process(WRITE_HALF, tmp_path) as running:
        wait_for(running, "half")
        assert cache.sweep() == 0  # its owner lives
        running.send_signal(signal.SIGKILL)
        running.wait()
    assert cache.lookup([key(1)]) == {}
    assert len(work_in_progress(cache)) == 1
    assert cache.sweep() == 1
    assert work_in_progress(cache) == []


def test_clearing_leaves_a_living_writer_its_work(tmp_path: Path) -> None:
    """A tensor that another process is writing survives `clear`, and is published afterwards."""
    cache = Cache(tmp_path)
    cache.write_record(key(2), {}, {})
    with process(WRITE_HALF, tmp_path) as running:
        wait_for(running, "half")
        assert clear(cache).records == 1
        go_on(running)
        assert running.wait() == 0
    assert set(cache.lookup([key(1), key(2)])) == {key(1)}
    assert np.array_equal(read_whole(cache, key(1)), raw_bytes(FLOAT32, SHAPE))


def test_a_reader_meets_values_or_misses_while_another_clears(tmp_path: Path) -> None:
    """Under another process's fill and clear, each read is right or a CorruptEntry, and each lookup an answer."""
    cache = Cache(tmp_path)
    with process(FILL_AND_CLEAR, tmp_path) as running:
        wait_for(running, "ready")
        go_on(running)
        while running.poll() is None:
            cache.lookup([key(number) for number in range(4)] + [key(1000 + number) for number in range(4)])
            for number in range(4):
                try:
                    assert cache.read_record(key(number)) == {"number": number}
                    values = read_whole(cache, key(1000 + number))
                except CorruptEntry:
                    continue
                assert np.array_equal(values, raw_bytes(FLOAT32, SHAPE, seed=number))
        assert running.returncode == 0


def test_work_of_another_machine_is_swept_after_a_day(tmp_path: Path) -> None:
    """Of a process elsewhere nothing is known, so only age makes its work rubbish."""
    cache = Cache(tmp_path)
    cache.write_record(key(1), {}, {})
    work = Path(cache.folders.works) / "0123456789abcdef-1.1-00"
    work.mkdir()
    (work / "c.0").write_bytes(b"half a chunk")
    modified = work.stat().st_mtime
    assert cache.folders.sweep(now=modified + ABANDONED_AFTER_SECONDS - 60) == 0
    assert cache.folders.sweep(now=modified + ABANDONED_AFTER_SECONDS + 60) == 1
    assert work_in_progress(cache) == []


def test_a_later_process_of_the_same_id_does_not_keep_rubbish_alive(tmp_path: Path) -> None:
    """Work is its owner's only while the process that started then lives, not another that got its id."""
    cache = Cache(tmp_path)
    with cache.create_tensor(key(1), FLOAT32, (2,), {}):
        [name] = work_in_progress(cache)
        machine, process_id, token = name.split("-")
        impostor = f"{machine}-{process_id.partition('.')[0]}.1-{token}"
        (Path(cache.folders.works) / impostor).mkdir()
        assert cache.sweep() == 1
        assert work_in_progress(cache) == [name]
