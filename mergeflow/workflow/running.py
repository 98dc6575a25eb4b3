"""Carrying a recipe out: staged, computed, published.

    compile -> digests -> stage every output -> look into the cache -> tasks -> complete shards -> publish

A damaged cache entry found on the way is dropped and the run goes on from where it is: shards that are complete stay,
the rest is planned again.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mergeflow.cache.open import open_cache
from mergeflow.errors import CorruptEntry, RunError
from mergeflow.execute.events import Event, Listener, PhaseFinished, PhaseStarted, TensorsDone, Warned
from mergeflow.execute.records import Settings, TaskResult
from mergeflow.execute.schedule import Scheduler, make_scheduler
from mergeflow.execute.warmup import import_in_background, may_have_cuda
from mergeflow.graph.history import describe_steps
from mergeflow.graph.plan import Fate, Plan, make_plan
from mergeflow.graph.values import Compiled
from mergeflow.models.records import Checkpoint
from mergeflow.output.publish import Published, publish
from mergeflow.output.staging import Staging, complete_shard, open_staging
from mergeflow.recipe.records import Recipe
from mergeflow.workflow.destination import Destination, destinations, targets
from mergeflow.workflow.files import lock_of, new_files
from mergeflow.workflow.folders import check_folders
from mergeflow.workflow.history_file import read_history, write_history
from mergeflow.workflow.models import check, compile_from_headers, compile_with_digests, is_elsewhere
from mergeflow.workflow.options import Options, peak_memory
from mergeflow.workflow.parts import room_for_parts
from mergeflow.workflow.planning import budget, look_up, native_judge, read_records
from mergeflow.workflow.report import ByteCounts, OutputReport, RunReport, TensorCounts, VocabularyReport
from mergeflow.workflow.shards import OpenShards

# A run that keeps finding damaged entries has a broken disk, not a damaged cache.
MOST_RESTARTS = 100


def run_recipe(recipe: Recipe, out: Path | None, options: Options, listen: Listener) -> RunReport:
    """Make every output of a recipe.

    Raises:
        RecipeError: the recipe or a model has errors; nothing was touched.
        OutputError: an output's folder cannot be written; nothing was touched.
        RunError: the run failed; the outputs are what they were, and what was completed is used by the next run.
    """
    run = _Run(recipe, options, listen)
    scheduler = make_scheduler(options.scheduler, options.workers)
    headers = compile_from_headers(recipe, run.hear, download=False, state=options.state)
    check(headers, strict=options.strict)
    check_folders(recipe, headers.checkpoints.values(), out, needed=True)
    import_in_background(headers.graph, options.device)
    if any(map(is_elsewhere, headers.checkpoints.values())):
        with run.phase("download", 0):
            headers = compile_from_headers(
                recipe, run.hear, download=True, planned=headers.checkpoints, state=options.state
            )
    compiled = compile_with_digests(recipe, headers, options, run.hear)
    run.warn(check(compiled, strict=options.strict))
    found = destinations(recipe, compiled, out)
    if options.cache is not None:
        open_cache(options.cache).sweep()
    with ExitStack() as stack:
        stagings = [stack.enter_context(_stage(destination)) for destination in found]
        for attempt in range(MOST_RESTARTS):
            try:
                run.compute(compiled, found, stagings, scheduler)
                break
            except CorruptEntry as error:
                run.drop(error, last=attempt == MOST_RESTARTS - 1)
        published = [run.publish(compiled, *pair) for pair in zip(found, stagings, strict=True)]
    write_history(options.state, recipe, describe_steps(recipe, compiled))
    return run.report(compiled, found, stagings, published)


@dataclass
class _Run:
    """The state of one run: what it has seen and counted so far."""

    recipe: Recipe
    options: Options
    listen: Listener
    began: float = field(default_factory=time.perf_counter)
    phases: dict[str, float] = field(default_factory=dict)
    results: list[TaskResult] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    digest_bytes: int = 0
    plan: Plan | None = None

    def hear(self, event: Event) -> None:
        """Pass an event on, keeping what the report needs of it."""
        if isinstance(event, PhaseFinished):
            self.phases[event.name] = self.phases.get(event.name, 0.0) + event.seconds
        elif isinstance(event, PhaseStarted) and event.name == "digest":
            self.digest_bytes += event.total_bytes
        elif isinstance(event, Warned):
            if event.message in self.warnings:
                return
            self.warnings.append(event.message)
        self.listen(event)

    def warn(self, warnings: Sequence[str]) -> None:
        for warning in warnings:
            if warning not in self.warnings:
                self.hear(Warned(warning))

    @contextmanager
    def phase(self, name: str, total_bytes: int, total_tensors: int = 0) -> Iterator[None]:
        began = time.perf_counter()
        self.hear(PhaseStarted(name, total_bytes, total_tensors))
        yield
        self.hear(PhaseFinished(name, time.perf_counter() - began))

    def compute(
        self, compiled: Compiled, found: Sequence[Destination], stagings: Sequence[Staging], scheduler: Scheduler
    ) -> None:
        """Bring every tensor of every incomplete shard to its place, completing shards as their last one arrives."""
        shards = OpenShards({destination.step: staging for destination, staging in zip(found, stagings, strict=True)})
        wanted = [
            target
            for destination, staging in zip(found, stagings, strict=True)
            for target in targets(destination, shards.works(destination.step))
        ]
        known = look_up(compiled.graph, self.options.cache, self.hear)
        known = read_records(compiled.graph, wanted, known, self.options.cache, self.hear)
        limits = budget(self.options)
        before = read_history(self.options.state, self.recipe)
        judge = native_judge(self.options.device)
        plan = make_plan(self.recipe, compiled, wanted, known, limits, before, judge)
        self.plan = self.plan or plan

        settings = Settings(
            budget=limits,
            device=choose_device(self.options.device) if plan.tasks else "cpu",
            cache=str(self.options.cache.absolute()) if self.options.cache else None,
            scratch=str(stagings[0].folder) if stagings else "",
            allow_non_finite=self.options.allow_non_finite,
        )
        with self.phase("merge", plan.bytes_read + plan.bytes_written, len(wanted)):
            shards.copy_unchanged()
            with room_for_parts(plan.before, settings) as settings:
                for tasks in (*plan.before, plan.tasks):
                    if tasks:
                        scheduler.run(tasks, settings, self.hear, self._finished(shards))

    def _finished(self, shards: OpenShards) -> Callable[[TaskResult], None]:
        guard = threading.Lock()

        def finished(result: TaskResult) -> None:
            with guard:
                self.results.append(result)
                self.warn(result.warnings)
                complete = shards.arrived(result.tensors)
            for staging, shard in complete:
                complete_shard(staging, shard)
            self.hear(TensorsDone(result.task, result.tensors))

        return finished

    def drop(self, error: CorruptEntry, *, last: bool) -> None:
        """Forget a damaged cache entry, so that its value is computed again."""
        if self.options.cache is None:
            raise RunError(f"{error}; this run has written it: look at the output's disk") from error
        if last:
            raise RunError(f"{error}; the cache keeps failing: look at its disk, or run with --no-cache") from error
        self.hear(Warned(f"{error}; it is computed again"))
        open_cache(self.options.cache).discard(error.key)

    def publish(self, compiled: Compiled, destination: Destination, staging: Staging) -> Published:
        self.warn(self._same_as_an_input(compiled, destination))
        files = new_files(self.recipe, compiled, destination)
        with self.phase("publish", 0):
            done = publish(staging, files, lock_of(self.recipe, compiled, destination))
        self.warn(done.warnings)
        return done

    def _same_as_an_input(self, compiled: Compiled, destination: Destination) -> list[str]:
        """A warning when every tensor of an output turned out to be, byte for byte, that of one input model."""
        names = [tensor.name for tensor in destination.compiled.tensors if math.prod(tensor.shape) > 0]
        equal = {name: digests for result in self.results for name, digests in result.same_as.items()}
        same = [
            model.label
            for model in compiled.checkpoints.values()
            if names
            and all(_digest(compiled, model, name) in equal.get((destination.step, name), ()) for name in names)
        ]
        return [f"the output {destination.step} is identical to {label}: the merge changed nothing" for label in same]

    def report(
        self,
        compiled: Compiled,
        found: Sequence[Destination],
        stagings: Sequence[Staging],
        published: Sequence[Published],
    ) -> RunReport:
        assert self.plan is not None  # every run plans, even one with nothing to do
        fates: dict[str, Fate] = {}
        keys: dict[str, str] = {}
        for output, made in zip(found, self.plan.outputs, strict=True):
            prefix = f"{output.step}/" if len(found) > 1 else ""
            for tensor in output.compiled.tensors:
                fates[prefix + tensor.name] = made.fates[tensor.name]
                keys[prefix + tensor.name] = compiled.graph[tensor.node].key or ""
        counts = {fate: sum(1 for f in fates.values() if f == fate) for fate in ("computed", "cached", "kept")}
        return RunReport(
            tensors=TensorCounts(len(fates), counts["computed"], counts["cached"], counts["kept"]),
            bytes=ByteCounts(
                read=self.digest_bytes + sum(result.read for result in self.results),
                written=sum(result.written for result in self.results),
                cache_read=sum(result.cache_read for result in self.results),
                cache_written=sum(result.cache_written for result in self.results),
            ),
            seconds=time.perf_counter() - self.began,
            phases=self.phases,
            peak_rss_bytes=peak_memory(),
            keys=keys,
            fates=fates,
            outputs=tuple(
                OutputReport(
                    step=output.step,
                    path=str(done.path),
                    shards={work.shard.file: work.state for work in staging.works},
                    files=dict(done.lock.files),
                )
                for output, staging, done in zip(found, stagings, published, strict=True)
            ),
            statistics={
                "computed": sum(step.statistics - step.statistics_known for step in self.plan.steps),
                "cached": sum(step.statistics_known for step in self.plan.steps),
            },
            warnings=tuple(self.warnings),
            vocabularies=tuple(merged_vocabularies(compiled)),
        )


def merged_vocabularies(compiled: Compiled) -> Iterator[VocabularyReport]:
    """The vocabularies that the steps of a recipe merged, in their order."""
    for name, result in compiled.results.items():
        made = result.vocabulary
        if made is not None and made.step == name:
            counts = made.shared, made.added, made.dropped
            yield VocabularyReport(name, len(made.tokenizer.ids), made.rows, *counts)


def _digest(compiled: Compiled, model: Checkpoint, name: str) -> str | None:
    source = model.tensors.get(name)
    return None if source is None else compiled.graph.key(source)


@contextmanager
def _stage(destination: Destination) -> Iterator[Staging]:
    assert destination.path is not None  # check_folders has seen to it
    with open_staging(destination.path, destination.shards) as staging:
        yield staging


def choose_device(wish: str) -> str:
    """The device a run computes on: ``auto`` is the first CUDA device when there is one.

    Raises:
        RunError: a CUDA device is asked for and there is none.
    """
    if wish == "cpu" or (wish == "auto" and not may_have_cuda()):
        return "cpu"

    import torch

    if wish == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wish.startswith("cuda") and not torch.cuda.is_available():
        raise RunError(f"--device {wish}: torch finds no CUDA device here; use --device cpu or auto")
    return wish
