"""Giving tasks to Dask: a failure stops the others before `run` returns, and lost workers are said to be lost."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
from distributed import KilledWorker

from mergeflow.errors import RunError
from mergeflow.execute import schedule
from mergeflow.execute.events import BytesMoved, Event, ignore
from mergeflow.execute.records import Settings, TaskResult
from mergeflow.execute.schedule import ClusterScheduler, ProcessScheduler, ThreadScheduler, make_scheduler
from mergeflow.graph.memory import Budget
from mergeflow.graph.tasks import Task

TASKS = [Task(f"task-{number:06d}", ()) for number in range(20)]


@pytest.fixture
def how(tmp_path: Path) -> Settings:
    return Settings(Budget(2, 0), "cpu", None, str(tmp_path))


def test_every_task_is_run_once(how: Settings) -> None:
    """Each task's result is handed over, from whichever thread it ended on."""
    finished: list[str] = []
    ThreadScheduler(4).run(TASKS, how, ignore, lambda result: finished.append(result.task))
    assert sorted(finished) == [task.name for task in TASKS]


def test_one_task_at_a_time_keeps_the_order(how: Settings) -> None:
    """With one thread tasks run in the order of the output, so that shards complete one by one."""
    finished: list[str] = []
    ThreadScheduler(1).run(TASKS, how, ignore, lambda result: finished.append(result.task))
    assert finished == [task.name for task in TASKS]


def test_a_failure_ends_the_others_first(how: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """When `run` raises, no task of it is running any more: one that was in the middle stopped at its next block."""
    under_way = threading.Event()
    ended: list[str] = []

    def work(task: Task, settings: Settings, moved: schedule.Finished) -> TaskResult:
        if task == TASKS[0]:
            assert under_way.wait(30)
            raise RunError("the disk is full")
        under_way.set()
        try:
            while True:
                moved(1, 1)  # type: ignore[call-arg, arg-type]
                time.sleep(0.001)
        finally:
            ended.append(task.name)

    monkeypatch.setattr("mergeflow.execute.task.run_task", work)
    with pytest.raises(RunError, match="the disk is full"):
        ThreadScheduler(2).run(TASKS, how, ignore, lambda result: None)
    assert ended == [TASKS[1].name]


def test_an_error_of_the_listener_ends_the_run(how: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `finished` raises (a shard that cannot be completed) is what the run raises."""

    def finished(result: TaskResult) -> None:
        raise RunError("complete: no room")

    with pytest.raises(RunError, match="no room"):
        ThreadScheduler(2).run(TASKS, how, ignore, finished)


def test_a_worker_stops_when_its_run_is_gone(how: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task on a worker runs while the file of its run is there, and ends at the next block when it is not."""
    running = tmp_path / "running"
    running.touch()
    blocks: list[int] = []

    def work(task: Task, settings: Settings, moved: schedule.Finished) -> TaskResult:
        for number in range(5):
            blocks.append(number)
            if number == 2:
                running.unlink()
            moved(1, 1)  # type: ignore[call-arg, arg-type]
        raise AssertionError

    monkeypatch.setattr("mergeflow.execute.task.run_task", work)
    with pytest.raises(schedule.Stopped):
        schedule.run_while_wanted(TASKS[0], how, str(running))
    assert blocks == [0, 1, 2]
    with pytest.raises(schedule.Stopped):
        schedule.run_while_wanted(TASKS[0], how, str(running))
    assert blocks == [0, 1, 2], "a task that comes too late does not begin"


def test_lost_workers_are_run_errors() -> None:
    """Dask's own errors for what it cannot bring to an end are told in our words, with exit code 3."""

    class Worker:
        address = "tcp://somewhere"

    with pytest.raises(RunError, match="task-1 was given up"), schedule._lost_workers_reported():
        raise KilledWorker("task-1", Worker(), 3)  # type: ignore[arg-type]
    with pytest.raises(RunError, match="the Dask scheduler was lost"), schedule._lost_workers_reported():
        raise CancelledError


def test_names_of_schedulers() -> None:
    """threads, processes, or an address; anything else is an error that says so."""
    assert isinstance(make_scheduler("threads", 2), ThreadScheduler)
    assert isinstance(make_scheduler("processes", 2), ProcessScheduler)
    assert isinstance(make_scheduler("tcp://host:8786", 2), ClusterScheduler)
    with pytest.raises(ValueError, match="no scheduler 'thread': use threads, processes or an address"):
        make_scheduler("thread", 2)


def test_bytes_are_reported_as_they_move(how: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread's blocks become events for the progress bar."""

    def work(task: Task, settings: Settings, moved: schedule.Finished) -> TaskResult:
        moved(3, 2)  # type: ignore[call-arg, arg-type]
        return TaskResult(task.name, ())

    monkeypatch.setattr("mergeflow.execute.task.run_task", work)
    events: list[Event] = []
    ThreadScheduler(2).run(TASKS, how, events.append, lambda result: None)
    assert events == [BytesMoved(3, 2)] * len(TASKS)
