"""Running a sweep: one candidate after the other, each as if it were alone, and none doing what another has done.

    compile and check all ──> hash what is not known ──> run each: staged, computed, published ──> one report

The cache carries statistics and results from one candidate to the next, folders carry the tensors that their outputs
have in common (`workflow.beside`). Without a cache there is one for as long as the sweep takes (`sweep_cache`).

A candidate that fails (numbers that are not finite, say) does not keep the others from running. A sweep that was
interrupted is run again: what is finished is looked at, and left as it is.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mergeflow.errors import MergeflowError, SweepError, counted
from mergeflow.execute.events import CandidateStarted, Event, Listener, PhaseFinished, PhaseStarted, Warned
from mergeflow.execute.schedule import Scheduler, make_scheduler
from mergeflow.execute.warmup import import_in_background
from mergeflow.graph.values import Compiled
from mergeflow.recipe.records import Recipe
from mergeflow.workflow.beside import Beside, Folders
from mergeflow.workflow.candidates import Compilations, WantedAgain, all_problems, check_candidates, folder_of
from mergeflow.workflow.folders import output_folder
from mergeflow.workflow.options import Options
from mergeflow.workflow.report import CandidateReport, RunReport
from mergeflow.workflow.running import run_compiled
from mergeflow.workflow.sweep_cache import cache_for_all
from mergeflow.workflow.sweep_report import swept_report
from mergeflow.workflow.traffic import Traffic, traffic_of


def run_sweep(recipe: Recipe, out: Path | None, options: Options, listen: Listener) -> RunReport:
    """Make every output of every candidate of a recipe. The report has all of them, and their sums.

    Raises:
        RecipeError: the recipe or a model has errors, for whichever candidate; nothing was touched.
        OutputError: an output's folder cannot be written; nothing was touched.
        SweepError: candidates failed; the others were made. It carries the report.
    """
    sweep = _Sweep(recipe, out, listen)
    scheduler = make_scheduler(options.scheduler, options.workers)
    compilations = Compilations(options, sweep.hear)
    check_candidates(recipe, compilations, out, needed=True, strict=options.strict)
    import_in_background(compilations.of(recipe.candidates[0]).graph, options.device)
    if compilations.is_anything_elsewhere:
        with sweep.phase("download"):
            compilations.download()
            check_candidates(recipe, compilations, out, needed=True, strict=options.strict)
    compilations.has_keys = True
    sweep.warn(all_problems(recipe, lambda candidate: compilations.of(candidate).problems, strict=options.strict))
    wanted = WantedAgain((candidate, compilations.of(candidate)) for candidate in recipe.candidates)
    folders = Folders()
    for place in sweep.places:
        folders.look(place)
    with cache_for_all(options, out or sweep.places[0].parent) as each:
        for number, candidate in enumerate(recipe.candidates):
            sweep.listen(CandidateStarted(candidate.candidate, number + 1, len(recipe.candidates)))
            beside = Beside(folders.present(), wanted.after(number), is_last_use=options.cache is None)
            sweep.run(candidate, compilations.of(candidate), each, scheduler, beside)
            compilations.let_go(candidate)
            for place in sweep.places_of(candidate):
                folders.look(place)
    return sweep.finish()


@dataclass
class _Sweep:
    """What a sweep has seen and made so far."""

    recipe: Recipe
    out: Path | None
    listen: Listener
    began: float = field(default_factory=time.perf_counter)
    phases: dict[str, float] = field(default_factory=dict)
    digest_bytes: int = 0
    warnings: dict[str, list[str]] = field(default_factory=dict)
    done: list[CandidateReport] = field(default_factory=list)
    traffic: Traffic = field(default_factory=Traffic)

    @property
    def places(self) -> list[Path]:
        return [place for candidate in self.recipe.candidates for place in self.places_of(candidate)]

    def places_of(self, candidate: Recipe) -> list[Path]:
        """The folders of one candidate."""
        below = folder_of(candidate, self.out)
        found = (output_folder(candidate, output, below) for output in candidate.outputs)
        return [place for place in found if place is not None]

    def hear(self, event: Event) -> None:
        """What is done once for all candidates."""
        if isinstance(event, PhaseFinished):
            self.phases[event.name] = self.phases.get(event.name, 0.0) + event.seconds
        elif isinstance(event, PhaseStarted) and event.name == "digest":
            self.digest_bytes += event.total_bytes
        elif isinstance(event, Warned):
            self.warn([event.message])
            return
        self.listen(event)

    def warn(self, messages: Sequence[str], candidate: str = "") -> None:
        """Show a warning the first time, and note whose it is; of all candidates when no name is given."""
        for message in messages:
            if message not in self.warnings:
                self.listen(Warned(f"{candidate}: {message}" if candidate else message))
            owners = self.warnings.setdefault(message, [])
            if candidate not in owners:
                owners.append(candidate)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        self.hear(PhaseStarted(name, 0))
        yield
        self.hear(PhaseFinished(name, time.perf_counter() - began))

    def run(
        self, candidate: Recipe, compiled: Compiled, options: Options, scheduler: Scheduler, beside: Beside
    ) -> None:
        """Make one candidate, or note why it failed."""

        def hear(event: Event) -> None:
            if isinstance(event, Warned):
                self.warn([event.message], candidate.candidate)
            else:
                self.listen(event)

        name = candidate.candidate
        values = {variable: candidate.variables[variable] for variable in self.recipe.sweep}
        places = tuple(map(str, self.places_of(candidate)))
        made = CandidateReport(name, values, places)
        try:
            below = folder_of(candidate, self.out)
            report, plan = run_compiled(candidate, compiled, below, options, hear, scheduler, beside)
        except (MergeflowError, OSError) as error:
            message = str(error) or type(error).__name__
            self.warn([f"failed: {message}"], name)
            self.done.append(replace(made, error=message))
            return
        mine = traffic_of(plan)
        shared = report.copied + len(mine.used_tensors & self.traffic.made_tensors)
        statistics = len(mine.used_statistics & self.traffic.made_statistics)
        self.traffic |= mine
        self.done.append(replace(made, shared_tensors=shared, shared_statistics=statistics, report=report))

    def finish(self) -> RunReport:
        """The report of all candidates.

        Raises:
            SweepError: some failed.
        """
        report = swept_report(
            self.done,
            seconds=time.perf_counter() - self.began,
            phases=self.phases,
            digest_bytes=self.digest_bytes,
            warnings=[
                message if "" in owners else f"{', '.join(owners)}: {message}"
                for message, owners in self.warnings.items()
            ],
        )
        failed = [candidate for candidate in self.done if candidate.error is not None]
        if failed:
            what = f"{len(failed)} of {counted(len(self.done), 'candidate')} failed, the others are written"
            reasons = "".join(f"; {candidate.name}: {candidate.error}" for candidate in failed)
            raise SweepError(what + reasons, report)
        return report
