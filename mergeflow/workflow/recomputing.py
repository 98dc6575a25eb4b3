"""Computing an output's tensors again and comparing them with its files: a run that writes nothing.

Tasks, devices, memory and schedulers are those of a run. Their results meet `execute.compared.ComparedFiles` instead of
the files a run writes.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from mergeflow.cache.place import as_place
from mergeflow.errors import CorruptEntry
from mergeflow.execute.events import Listener, PhaseFinished, PhaseStarted, TensorsDone, Warned
from mergeflow.execute.records import Settings, TaskResult
from mergeflow.execute.schedule import make_scheduler
from mergeflow.graph.plan import unkept_nodes
from mergeflow.graph.tasks import Known, Target, Task, form_tasks, tasks_before
from mergeflow.graph.values import Compiled
from mergeflow.output.integrity import Fault
from mergeflow.recipe.records import Recipe
from mergeflow.workflow.options import Options
from mergeflow.workflow.parts import room_for_parts
from mergeflow.workflow.planning import budget, look_up, read_records
from mergeflow.workflow.running import choose_device


def compare_bytes(
    recipe: Recipe, compiled: Compiled, targets: Sequence[Target], options: Options, listen: Listener
) -> Iterator[Fault]:
    """The tensors whose bytes are not what computing them again gives, in the order of the files.

    Args:
        targets: each with the place of its bytes in the output.
        options: with a cache, what is in it is believed; without one everything is computed.

    Raises:
        RunError: a file cannot be read, or changed meanwhile.
    """
    try:
        different = _compute(recipe, compiled, targets, options, listen)
    except CorruptEntry as error:
        listen(Warned(f"{error}; everything is computed without the cache"))
        different = _compute(recipe, compiled, targets, replace(options, cache=None), listen)
    for target in targets:
        first = different.get(target.name)
        if first is not None:
            yield Fault("tensor", target.name, f"has other bytes than its recipe gives, from element {first} on")


def _compute(
    recipe: Recipe, compiled: Compiled, targets: Sequence[Target], options: Options, listen: Listener
) -> dict[str, int]:
    """Compute every target and compare: for each that differs, the first element that does."""
    graph = compiled.graph
    known = Known(cache_is_off=True)
    if options.cache is not None:
        known = look_up(graph, options.cache, listen)
        known = read_records(graph, targets, known, options.cache, listen)
    unkept = unkept_nodes(recipe, compiled)
    waves, known = tasks_before(graph, targets, known, unkept)
    tasks = form_tasks(graph, targets, known, unkept)
    different: dict[str, int] = {}
    guard = threading.Lock()

    def finished(result: TaskResult) -> None:
        with guard:
            different.update({name: first for (_, name), first in result.different.items()})
        listen(TensorsDone(result.task, result.tensors))

    scheduler = make_scheduler(options.scheduler, options.workers)
    began = time.perf_counter()
    listen(PhaseStarted("verify", _bytes_moved((*waves, tasks)), len(targets)))
    with _scratch(options.state) as scratch:
        settings = Settings(
            budget=budget(options),
            device=choose_device(options.device),
            cache=None if options.cache is None else as_place(options.cache),
            scratch=scratch,
            allow_non_finite=True,
            compare=True,
        )
        with room_for_parts(waves, settings) as with_room:
            for wave in (*waves, tasks):
                if wave:
                    scheduler.run(wave, with_room, listen, finished)
    listen(PhaseFinished("verify", time.perf_counter() - began))
    return different


@contextmanager
def _scratch(state: Path) -> Iterator[str]:
    """A folder for what does not fit into memory: the output's own may belong to somebody else."""
    try:
        state.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=state, prefix="verify-")
    except OSError:
        folder = tempfile.TemporaryDirectory(prefix="mergeflow-verify-")
    with folder as path:
        yield path


def _bytes_moved(waves: Sequence[Sequence[Task]]) -> int:
    """What the tasks read from inputs once, and what they compare."""
    programs = [program for wave in waves for task in wave for program in task.programs]
    read = sum(source.nbytes for program in programs for it in program.instructions for source in it.sources())
    made = [(program, program.instructions[sink.instruction].dtype) for program in programs for sink in program.sinks]
    return read + sum(program.size * dtype.itemsize for program, dtype in made if dtype is not None)
