"""Why a plan's tensors must run, from the last run of the recipe, the cache and what lies in the outputs' folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from mergeflow.graph.changes import Changes
from mergeflow.graph.history import history_of
from mergeflow.graph.plan import Plan
from mergeflow.graph.reasons import Causes, summed_up
from mergeflow.graph.tasks import Known, Target, needed_nodes
from mergeflow.graph.why import Situation, must_run
from mergeflow.output.target import inspect_target
from mergeflow.workflow.destination import Destination
from mergeflow.workflow.history_file import read_history
from mergeflow.workflow.options import Options


@dataclass(frozen=True, slots=True)
class Reasons:
    """Why each tensor must run, by step and name; those that need no run are not in it.

    Args:
        changes: since the last run of the recipe; None when there was none.
    """

    situation: Situation
    changes: Changes | None
    causes: Mapping[str, Mapping[str, Causes]]


def reasons_of(
    plan: Plan, found: Sequence[Destination], wanted: Sequence[Target], known: Known, options: Options
) -> Reasons:
    """Why the tensors of a plan must run.

    Args:
        wanted: the tensors of outputs that are not there already.
    """
    recipe, compiled = plan.recipe, plan.compiled
    situation = Situation(
        recipe=recipe,
        compiled=compiled,
        known=known,
        needed=frozenset(needed_nodes(compiled.graph, (target.node for target in wanted), known)),
        lost=dict(_lost(found, wanted)),
        kept=frozenset(_kept(plan)),
    )
    if not situation.needed:  # the usual case, and the one that must be fast
        return Reasons(situation, None, {step: {} for step in compiled.results})
    then = read_history(options.state, recipe)
    changes = None if then is None else Changes(recipe, compiled, then, history_of(recipe, compiled))
    return Reasons(situation, changes, must_run(situation, changes))


def with_reasons(plan: Plan, reasons: Reasons) -> Plan:
    """The plan with a few lines for each step that say why it must run."""
    why = {step: summed_up(list(causes.values())) for step, causes in reasons.causes.items()}
    return replace(plan, steps=tuple(replace(step, why=why.get(step.name, ())) for step in plan.steps))


def _kept(plan: Plan) -> Iterator[str]:
    for task in (*plan.tasks, *(task for wave in plan.before for task in wave)):
        for program in task.programs:
            for sink in program.sinks:
                if sink.place is None and not sink.is_part:
                    yield program.instructions[sink.instruction].key


def _lost(found: Sequence[Destination], wanted: Sequence[Target]) -> Iterator[tuple[tuple[str, str], str]]:
    """What became of the tensors of outputs that an earlier run wrote; where nothing is to be written, nobody asks."""
    for destination in found:
        mine = [target for target in wanted if target.output == destination.step]
        if mine:
            seen = _seen(destination)
            for target in mine:
                yield (destination.step, target.name), _what_happened(target.name, seen)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is in an output's folder: what is said of all of it, and of the tensors of files that were changed."""

    folder: str
    of_all: str | None
    of_tensors: Mapping[str, str]


def _seen(destination: Destination) -> _Seen:
    if destination.path is None:
        return _Seen("", "no folder is named for the output", {})
    target, name = inspect_target(destination.path), destination.path.name
    if target.kind == "absent" or target.lock is None:
        return _Seen(name, f"{name} is not there" if target.kind == "absent" else f"{name} is empty", {})
    intact = {shard.file for shard in target.intact}
    changed = [shard for shard in target.lock.shards if shard.file not in intact]
    texts = {
        placed.tensor.name: f"{name}/{shard.file} was changed or removed"
        for shard in changed
        for placed in shard.tensors
    }
    return _Seen(name, None, texts)


def _what_happened(tensor: str, seen: _Seen) -> str:
    return seen.of_all or seen.of_tensors.get(tensor) or f"{seen.folder} holds another version of it"
