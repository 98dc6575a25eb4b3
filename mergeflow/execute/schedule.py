"""Giving tasks to Dask: this machine's threads, a local cluster of processes, or any `dask.distributed` address.

Only tasks (small frozen records) go out and results (keys, counts) come back, in the order they finish. When a task
fails, or the user interrupts, tasks that have started stop at their next block and no others start.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from mergeflow.errors import RunError
from mergeflow.execute.events import BytesMoved, Listener
from mergeflow.execute.files import writing
from mergeflow.execute.records import Settings, TaskResult
from mergeflow.graph.tasks import Task

Finished = Callable[[TaskResult], None]

CONNECT_SECONDS = 10.0
# How long a failed run waits for tasks on a cluster to notice, at most: a worker may hang.
STOP_SECONDS = 60.0


class Stopped(Exception):
    """Raised inside a task that should not go on: another one failed, or the user interrupted."""


class Scheduler(Protocol):
    """Runs tasks somewhere."""

    def run(self, tasks: Sequence[Task], settings: Settings, emit: Listener, finished: Finished) -> None:
        """Run every task; `finished` is called, on any thread, as each one ends. Raises what a task raised."""
        ...


class ThreadScheduler:
    """Dask's threaded scheduler: `threads` tasks at a time in this process."""

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def run(self, tasks: Sequence[Task], settings: Settings, emit: Listener, finished: Finished) -> None:
        import dask.threaded
        from dask.task_spec import Task as DaskTask

        from mergeflow.execute.task import run_task

        stop = threading.Event()

        def moved(read: int, written: int) -> None:
            if stop.is_set():
                raise Stopped
            emit(BytesMoved(read, written))

        # Dask starts nodes that depend on nothing in an order of its own (the last first, today); tasks are taken in
        # the order of the output, so that shards complete one by one and are written in rising offsets.
        waiting = deque(tasks)

        def work() -> None:
            if stop.is_set():
                raise Stopped
            finished(run_task(waiting.popleft(), settings, moved))

        graph = {task.name: DaskTask(task.name, work) for task in tasks}
        # A pool of our own, because leaving it waits for tasks that still run: none of them may write into an output,
        # or complete a shard of it, that the run has given up and another one has begun anew.
        with ThreadPoolExecutor(self.threads) as pool:
            try:
                dask.threaded.get(graph, list(graph), pool=pool)
            finally:
                stop.set()


class ClusterScheduler:
    """A `dask.distributed` cluster. Workers must see the models, the cache and the output under the same paths.

    With ``device="cuda"`` tasks go to workers that offer ``resources={"GPU": 1}``.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    def run(self, tasks: Sequence[Task], settings: Settings, emit: Listener, finished: Finished) -> None:
        from distributed import Client

        try:
            client = Client(self.address, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError) as error:  # ValueError: an address of a kind that Dask does not know
            raise RunError(f"no Dask scheduler answers at {self.address}: {error}") from error
        with client:
            _run_on(client, tasks, settings, emit, finished)


class ProcessScheduler:
    """A local cluster of `workers` processes with one thread each, for machines with many cores."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def run(self, tasks: Sequence[Task], settings: Settings, emit: Listener, finished: Finished) -> None:
        with _local_cluster(self.workers) as address:
            ClusterScheduler(address).run(tasks, settings, emit, finished)


def _run_on(client: object, tasks: Sequence[Task], settings: Settings, emit: Listener, finished: Finished) -> None:
    from distributed import Client, as_completed

    assert isinstance(client, Client)
    resources = {"GPU": 1} if settings.device.startswith("cuda") else None
    running = _new_file(settings.scratch)
    # Higher priorities run first: tasks run in the order of the output, and shards complete one by one.
    futures = [
        client.submit(run_while_wanted, task, settings, running, pure=False, resources=resources, priority=-number)
        for number, task in enumerate(tasks)
    ]
    try:
        for future in as_completed(futures, loop=client.loop):
            with _lost_workers_reported():
                result = future.result()
            future.release()  # else the cluster would run the task again when a worker that holds its result dies
            emit(BytesMoved(result.read, result.written))
            finished(result)
    except BaseException:
        _stop(client, futures, running)
        raise


def _new_file(folder: str) -> str:
    path = os.path.join(folder, f"running-{uuid4().hex}")
    with writing(path):
        Path(path).touch()
    return path


def run_while_wanted(task: Task, settings: Settings, running: str) -> TaskResult:
    """What a worker is asked to do: `run_task`, ending at the next block once the file `running` is gone.

    The file lies beside the output's shards and goes with them, whatever becomes of the process that asked: a worker
    that was out of reach meanwhile does not write into the shards of a later run.
    """
    from mergeflow.cache.open import open_cache
    from mergeflow.execute.task import run_task

    def moved(read: int, written: int) -> None:
        if not os.path.exists(running):
            raise Stopped

    moved(0, 0)
    result = run_task(task, settings, moved)
    if settings.cache is not None:
        # A worker may end when the run does: what it has to put into a shared cache is there before it answers.
        store = open_cache(settings.cache)
        store.settle()
        result = replace(result, warnings=result.warnings + store.warnings())
    return result


def _stop(client: object, futures: Sequence[object], running: str) -> None:
    """End a run that failed: no task starts any more, and those that run have ended when this returns.

    Cancelling alone would leave them running on their workers.
    """
    from distributed import Client, Future, wait

    assert isinstance(client, Client)
    with contextlib.suppress(Exception):  # the scheduler, or the disk, may be what failed
        os.unlink(running)
        started = {key for keys in client.processing().values() for key in keys}
        unfinished = [future for future in futures if isinstance(future, Future) and not future.done()]
        client.cancel([future for future in unfinished if future.key not in started], force=True)
        wait([future for future in unfinished if future.key in started], timeout=STOP_SECONDS)


@contextmanager
def _lost_workers_reported() -> Iterator[None]:
    """Turn what Dask raises when it cannot bring a task to its end into a RunError."""
    from distributed import CancelledError, KilledWorker

    try:
        yield
    except KilledWorker as error:
        raise RunError(
            f"{error.task} was given up: every worker that ran it died; are they short of memory?"
        ) from error
    except CancelledError as error:
        raise RunError("the Dask scheduler was lost, or somebody cancelled the run on it; run again") from error


@contextmanager
def _local_cluster(workers: int) -> Iterator[str]:
    from distributed import LocalCluster

    # Port 0: any that is free. (None would mean the usual one, and a warning when another cluster has it.)
    quiet = {"dashboard": False}
    with LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        dashboard_address="127.0.0.1:0",
        scheduler_kwargs=quiet,
        preload=["mergeflow.execute.deafness"],
        silence_logs=logging.CRITICAL,  # what a task fails of is said once, by us
    ) as cluster:
        yield str(cluster.scheduler_address)


def make_scheduler(name: str, workers: int) -> Scheduler:
    """The scheduler a user names: ``threads``, ``processes``, or the address of a Dask scheduler.

    Raises:
        ValueError: the name is none of these.
    """
    if name == "threads":
        return ThreadScheduler(workers)
    if name == "processes":
        return ProcessScheduler(workers)
    if "://" in name:
        return ClusterScheduler(name)
    raise ValueError(f"no scheduler {name!r}: use threads, processes or an address such as tcp://host:8786")
