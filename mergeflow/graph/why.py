"""Why must it run? For each tensor of a plan that is computed: what changed, or why what did not change is not there.

    changed since the last run       its causes (graph.changes)
    no run is known                  first run of this recipe on this machine
    unchanged, an output's tensor    its file was changed or removed; the folder is not there
    unchanged, needed by a step      its value is not in the cache any more; was never kept; only statistics were

Only what must run is asked about.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field

from mergeflow.graph.changes import Changes
from mergeflow.graph.nodes import Node
from mergeflow.graph.reasons import Causes, Reason
from mergeflow.graph.tasks import Known, is_known
from mergeflow.graph.values import Compiled
from mergeflow.graph.within import read_by, within
from mergeflow.recipe.records import Recipe, Step, StepReference

FIRST = Causes((Reason("first", "first run of this recipe on this machine"),))


@dataclass(frozen=True, slots=True)
class Situation:
    """What a plan finds.

    Args:
        known: the cache's values.
        needed: every node that the run evaluates or reads.
        lost: by output step and tensor: why an output's tensor must be written, were it unchanged.
        kept: the keys that the policy puts into the cache: one that was computed before was there, and was removed.
    """

    recipe: Recipe
    compiled: Compiled
    known: Known
    needed: Set[int]
    lost: Mapping[tuple[str, str], str] = field(default_factory=dict)
    kept: Set[str] = frozenset()


def must_run(situation: Situation, changes: Changes | None) -> dict[str, dict[str, Causes]]:
    """The causes for every tensor of every step that is computed, by step and tensor.

    Args:
        changes: since the last run of the recipe; None when there was none.
    """
    running = {step.name: dict(_running(situation, step)) for step in _steps(situation)}
    if changes is None:
        return {step: dict.fromkeys(tensors, FIRST) for step, tensors in running.items()}
    readers = _readers(situation, running)
    found: dict[str, dict[str, Causes]] = {}
    for step in _steps(situation):
        changed = changes.found[step.name]
        found[step.name] = {
            name: changed.get(name) or _not_there(situation, step, name, node, readers.get((step.name, name), {}))
            for name, node in running[step.name].items()
        }
    return found


def _steps(situation: Situation) -> Iterator[Step]:
    return (step for step in situation.recipe.steps if step.name in situation.compiled.results)


def _running(situation: Situation, step: Step) -> Iterator[tuple[str, Node]]:
    graph = situation.compiled.graph
    for name, tensor in situation.compiled.results[step.name].tensors.items():
        node = graph[tensor.node]
        if node.id in situation.needed and (node.kind == "load" or not is_known(node, situation.known)):
            yield name, node


def _readers(situation: Situation, running: Mapping[str, Mapping[str, Node]]) -> dict[tuple[str, str], dict[str, None]]:
    """The steps that read each tensor of a step, and are computed."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for step in _steps(situation):
        if not any(isinstance(source, StepReference) for source in step.sources()):
            continue
        result = situation.compiled.results[step.name]
        for tensor in running[step.name]:
            for source, name in read_by(step, result, tensor):
                if isinstance(source, StepReference):
                    found.setdefault((source.name, name), {})[step.name] = None
    return found


def _not_there(situation: Situation, step: Step, name: str, node: Node, readers: Mapping[str, None]) -> Causes:
    """Why an unchanged tensor must be computed."""
    lost = situation.lost.get((step.name, name))
    reasons = [Reason("output", lost)] if lost is not None else []
    if node.kind != "load" and (readers or lost is None):
        wanted = f"{', '.join(readers)} needs it: " if len(readers) == 1 else ""
        wanted = f"{', '.join(readers)} need it: " if len(readers) > 1 else wanted
        reasons.append(Reason("cache", wanted + not_kept(situation, step, name, node)))
    if not reasons:
        reasons.append(Reason("carried", f"{', '.join(readers) or 'the output'} reads it from its file"))
    return Causes(tuple(reasons))


def not_kept(situation: Situation, step: Step, name: str, node: Node) -> str:
    """Why a value that is as it was in the last run is not in the cache."""
    if situation.known.cache_is_off:
        return "there is no cache"
    if step.cache == "never":
        return "never kept (cache: never)"
    if step.cache == "always" or node.key in situation.kept:
        return "its value is not in the cache any more"
    graph, compiled = situation.compiled.graph, situation.compiled
    read = read_by(step, compiled.results[step.name], name)
    statistics = [it for i in within(compiled, read, node.id).nodes if (it := graph[i]).kind == "statistic"]
    if statistics and all(is_known(it, situation.known) for it in statistics):
        return "only its statistics were kept"
    return "not kept (cache: auto)"
