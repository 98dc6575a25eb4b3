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
from mergeflow.cache.place import as_place, is_shared
from mergeflow.errors import CorruptEntry, RunError
from mergeflow.execute.events import Event, Listener, PhaseFinished, PhaseStarted, TensorsDone, Warned
from mergeflow.execute.records import Settings, TaskResult
from mergeflow.execute.schedule import Scheduler, make_scheduler
from mergeflow.execute.warmup import import_in_background, may_have_cuda
from mergeflow.graph.history import history_of
from mergeflow.graph.plan import Fate, Plan, make_plan
from mergeflow.graph.tasks import Known, Target, Task
from mergeflow.graph.values import Compiled
from mergeflow.models.records import Checkpoint
from mergeflow.output.publish import Published, publish
from mergeflow.output.staging import Staging, complete_shard, open_staging, with_keys
from mergeflow.recipe.records import Recipe
from mergeflow.workflow.beside import ALONE, Beside
from mergeflow.workflow.caring import cared_for, make_room
from mergeflow.workflow.destination import Destination, destinations, targets
from mergeflow.workflow.files import new_files
from mergeflow.workflow.folders import check_folders
from mergeflow.workflow.history_file import write_history
from mergeflow.workflow.keeping import circumstances
from mergeflow.workflow.late_digests import LateDigests, may_hash_later
from mergeflow.workflow.locking import lock_of
from mergeflow.workflow.models import Opened, check, compile_from_headers, compile_with_digests, is_elsewhere
from mergeflow.workflow.options import Options, peak_memory
from mergeflow.workflow.parts import room_for_parts
from mergeflow.workflow.planning import budget, look_up, native_judge, read_records, tell_dropped
from mergeflow.workflow.published import remember_output
from mergeflow.workflow.report import ByteCounts, OutputReport, RunReport, TensorCounts, VocabularyReport
from mergeflow.workflow.shards import OpenShards, copying

# A run that keeps finding damaged entries has a broken disk, not a damaged cache.
MOST_RESTARTS = 100


def run_recipe(
    recipe: Recipe, out: Path | None, options: Options, listen: Listener, *, remember: bool = True
) -> RunReport:
    """Make every output of a recipe.

    Args:
        remember: this is the run that the next plan of the recipe says the differences to.

    Raises:
        RecipeError: the recipe or a model has errors; nothing was touched.
        OutputError: an output's folder cannot be written; nothing was touched.
        RunError: the run failed; the outputs are what they were, and what was completed is used by the next run.
    """
    if recipe.candidates:
        from mergeflow.workflow.sweeping import run_sweep  # it runs each candidate by this module

        return run_sweep(recipe, out, options, listen)
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
    # What others have computed is known by keys alone: with a shared cache they come first.
    if may_hash_later(recipe, headers, out) and not is_shared(options.cache):
        compiled, run.late = headers, LateDigests(recipe, headers, out, options)
    else:
        compiled = compile_with_digests(recipe, headers, options, run.hear)
    run.warn(check(compiled, strict=options.strict))
    return _carry_out(run, compiled, out, scheduler, remember=remember)


def run_compiled(
    recipe: Recipe,
    compiled: Compiled,
    out: Path | None,
    options: Options,
    listen: Listener,
    scheduler: Scheduler,
    beside: Beside,
) -> tuple[RunReport, Plan]:
    """Make every output of one candidate of a sweep, which was checked and has a key for every node.

    Raises:
        OutputError, RunError: as `run_recipe`.
    """
    run = _Run(recipe, options, listen, beside=beside)
    report = _carry_out(run, compiled, out, scheduler, remember=True)
    assert run.plan is not None  # every run plans
    return report, run.plan


def _carry_out(run: _Run, compiled: Compiled, out: Path | None, scheduler: Scheduler, *, remember: bool) -> RunReport:
    """Stage, compute and publish what was compiled."""
    recipe, options = run.recipe, run.options
    found = destinations(recipe, compiled, out)
    if options.cache is not None:
        open_cache(options.cache).check()
        open_cache(options.cache).sweep()
    with ExitStack() as stack:
        stack.enter_context(cared_for(options, compiled.graph, run.hear))
        stagings = [stack.enter_context(_stage(destination, run)) for destination in found]
        reasons = [(staging.target.path, staging.why_not_in_place) for staging in stagings]
        run.warn([f"{path} is not patched in place: {reason}" for path, reason in reasons if reason is not None])
        for attempt in range(MOST_RESTARTS):
            try:
                run.compute(compiled, found, stagings, scheduler)
                break
            except CorruptEntry as error:
                run.drop(error, last=attempt == MOST_RESTARTS - 1)
        if run.late is not None:
            compiled, found, stagings = run.settle(compiled, out, stagings, run.late)
        published = [run.publish(compiled, *pair) for pair in zip(found, stagings, strict=True)]
    run.share()
    for done in published:
        remember_output(options.state, done.path, recipe)
    if remember:
        write_history(options.state, recipe, history_of(recipe, compiled))
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
    beside: Beside = ALONE
    late: LateDigests | None = None

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
        plan = self._make_plan(compiled, wanted, known, may_measure=True)
        self.plan = self.plan or plan
        if plan.cache_bytes_written:
            make_room(self.options, self.hear, coming=plan.cache_bytes_written)

        settings = Settings(
            budget=plan.budget,
            device=choose_device(self.options.device) if plan.tasks else "cpu",
            cache=None if self.options.cache is None else as_place(self.options.cache),
            scratch=str(stagings[0].folder) if stagings else "",
            allow_non_finite=self.options.allow_non_finite,
        )
        moved = plan.bytes_read + plan.bytes_written + shards.bytes_to_copy
        with (
            self.phase("merge", moved, len(wanted)),
            copying(shards, self.hear) as hear,
            room_for_parts(plan.before, settings) as settings,
        ):
            for tasks in (*plan.before, self._with_shared_digests(plan.tasks)):
                if tasks:
                    scheduler.run(tasks, settings, hear, self._finished(shards))

    def _finished(self, shards: OpenShards) -> Callable[[TaskResult], None]:
        guard = threading.Lock()

        def finished(result: TaskResult) -> None:
            with guard:
                self.results.append(result)
                self.warn(result.warnings)
                complete = shards.computed(result.tensors)
                if self.late is not None:
                    self.late.learn(result.inputs)
                    complete = [(staging, self.late.keyed(staging.target.path, shard)) for staging, shard in complete]
            for staging, shard in complete:
                complete_shard(staging, shard)
            self.hear(TensorsDone(result.task, result.tensors))

        return finished

    def _make_plan(self, compiled: Compiled, wanted: Sequence[Target], known: Known, *, may_measure: bool) -> Plan:
        judge = native_judge(self.options.device)
        told = circumstances(self.options, compiled, wanted, may_measure=may_measure, beside=self.beside)
        return make_plan(self.recipe, compiled, wanted, known, budget(self.options), judge, told)

    def _with_shared_digests(self, tasks: tuple[Task, ...]) -> tuple[Task, ...]:
        return tasks if self.late is None else self.late.hash_shared(tasks, self.hear)

    def settle(
        self, compiled: Compiled, out: Path | None, stagings: Sequence[Staging], late: LateDigests
    ) -> tuple[Compiled, tuple[Destination, ...], list[Staging]]:
        """The same with every digest, now that the tasks have found theirs, and the plan that it turned out to be."""
        late.save()
        opened = Opened(digests=dict(late.digests))
        compiled = compile_with_digests(self.recipe, compiled, self.options, self.hear, opened)
        self.warn(check(compiled, strict=self.options.strict))
        found = destinations(self.recipe, compiled, out)
        keyed = [with_keys(staging, it.shards) for it, staging in zip(found, stagings, strict=True)]
        known = late.known(compiled, cache_is_off=self.options.cache is None)
        if known.tensors or known.records:
            wanted = [target for it, staging in zip(found, keyed, strict=True) for target in targets(it, staging.works)]
            self.plan = self._make_plan(compiled, wanted, known, may_measure=False)
        return compiled, found, keyed

    def drop(self, error: CorruptEntry, *, last: bool) -> None:
        """Forget a damaged cache entry, so that its value is computed again."""
        if self.options.cache is None:
            raise RunError(f"{error}; this run has written it: look at the output's disk") from error
        if last:
            raise RunError(f"{error}; the cache keeps failing: look at its disk, or run with --no-cache") from error
        store = open_cache(self.options.cache)
        tell_dropped(store, error, self.hear)
        store.discard(error.key)

    def share(self) -> None:
        """Wait until others can see what was put into the cache, where it is shared, and tell what could not be."""
        if self.options.cache is not None:
            store = open_cache(self.options.cache)
            store.settle()
            self.warn(store.warnings())

    def publish(self, compiled: Compiled, destination: Destination, staging: Staging) -> Published:
        self.warn(self._same_as_an_input(compiled, destination))
        files = new_files(self.recipe, compiled, destination)
        with self.phase("publish", 0):
            done = publish(staging, files, lock_of(self.recipe, compiled, destination.compiled))
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
            copied=_copied(stagings),
        )


def _copied(stagings: Sequence[Staging]) -> int:
    """How many tensors came from folders of other candidates."""
    return sum(
        1
        for staging in stagings
        for work in staging.works
        for place in work.places
        if place.copy_from is not None and place.copy_from.file.parent != staging.target.path
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
def _stage(destination: Destination, run: _Run) -> Iterator[Staging]:
    assert destination.path is not None  # check_folders has seen to it
    present, patch = run.beside.present, run.options.in_place
    with open_staging(destination.path, destination.shards, elsewhere=present, patch=patch) as staging:
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
