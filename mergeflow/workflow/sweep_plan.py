"""What a sweep would do: a plan for each candidate, given that those before it have run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mergeflow.execute.events import Listener
from mergeflow.graph.plan import Plan
from mergeflow.graph.tasks import Known
from mergeflow.output.compare import Extent
from mergeflow.recipe.records import Recipe, Variable
from mergeflow.workflow.beside import Beside, Folders
from mergeflow.workflow.candidates import Compilations, WantedAgain, check_candidates, folder_of
from mergeflow.workflow.destination import destinations
from mergeflow.workflow.folders import output_folder
from mergeflow.workflow.options import Options
from mergeflow.workflow.planning import plan_compiled
from mergeflow.workflow.sweep_cache import sweep_cache
from mergeflow.workflow.traffic import traffic_of


@dataclass(frozen=True, slots=True)
class CandidatePlan:
    """What a run would do for one candidate.

    Args:
        values: of the swept variables; a gradient is a tuple.
    """

    name: str
    values: Mapping[str, Variable]
    plan: Plan


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """What a run of a recipe with a sweep would do, candidate by candidate, in their order."""

    recipe: Recipe
    candidates: tuple[CandidatePlan, ...]

    @property
    def bytes_read(self) -> int:
        return sum(candidate.plan.bytes_read for candidate in self.candidates)

    @property
    def bytes_written(self) -> int:
        return sum(candidate.plan.bytes_written for candidate in self.candidates)

    @property
    def cache_bytes_written(self) -> int:
        return sum(candidate.plan.cache_bytes_written for candidate in self.candidates)

    @property
    def peak_bytes(self) -> int:
        """The most memory that any of them takes: they run one after the other."""
        return max(candidate.plan.peak_bytes for candidate in self.candidates)

    @property
    def digests_missing(self) -> int:
        """How many tensors have never been read on this machine; what depends on them is not known to be shared."""
        return max(candidate.plan.digests_missing for candidate in self.candidates)


def plan_sweep(recipe: Recipe, out: Path | None, options: Options, listen: Listener) -> SweepPlan:
    """What a run would do now. Reads headers, the cache's names and the outputs' locks; no weights.

    Raises:
        RecipeError: the recipe has errors, for whichever candidate.
        OutputError: an output's folder cannot be used.
    """
    compilations = Compilations(options, listen)
    check_candidates(recipe, compilations, out, needed=False, strict=options.strict)
    wanted = WantedAgain((candidate, compilations.of(candidate)) for candidate in recipe.candidates)
    folders, written, coming = Folders(), dict[str, Extent](), Known()
    places = [place for candidate in recipe.candidates for place in _places(candidate, out)]
    for place in places:
        folders.look(place)
    each = options
    if options.cache is None:
        each = replace(options, cache=sweep_cache(out or (places[0].parent if places else recipe.folder)))

    plans = []
    for number, candidate in enumerate(recipe.candidates):
        compiled, below = compilations.of(candidate), folder_of(candidate, out)
        present = {**folders.present(), **written}
        beside = Beside(present, wanted.after(number), is_last_use=options.cache is None)
        plan = plan_compiled(candidate, compiled, below, each, listen, beside, coming)
        values = {name: candidate.variables[name] for name in recipe.sweep}
        plans.append(CandidatePlan(candidate.candidate, values, plan))
        compilations.let_go(candidate)

        made = traffic_of(plan)
        records = {**coming.records, **dict.fromkeys(made.made_statistics)}
        coming = Known(coming.tensors | made.made_tensors, records=records)
        for destination in destinations(candidate, compiled, below):
            for shard in destination.shards:
                file = (destination.path or Path()) / shard.file
                for placed in shard.tensors:
                    if placed.tensor.key is not None:
                        written[placed.tensor.key] = Extent(file, placed.offset, placed.tensor.nbytes)
    return SweepPlan(recipe, tuple(plans))


def _places(candidate: Recipe, out: Path | None) -> list[Path]:
    found = (output_folder(candidate, output, folder_of(candidate, out)) for output in candidate.outputs)
    return [place for place in found if place is not None]
