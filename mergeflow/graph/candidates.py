"""Which results of steps a run could keep in the cache, and how often each will be wanted again.

Results of steps with ``cache: always`` are kept because somebody said so, those of ``cache: never`` never, and those of
``cache: auto`` are what `graph.policy` decides about. Only what this run computes can be kept: what it reads lies where
it is already, and what no output needs is not made.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field

from mergeflow.graph.nodes import Graph
from mergeflow.graph.policy import (
    NOMINAL,
    UNREAD,
    Candidate,
    Circumstances,
    Question,
    Rates,
    Verdict,
    decide,
    seconds_at_stake,
)
from mergeflow.graph.tasks import Known, Target, is_known
from mergeflow.graph.values import Compiled
from mergeflow.recipe.records import Recipe


@dataclass(frozen=True, slots=True)
class StepKeeping:
    """What of a step's results a run keeps, and why.

    Args:
        candidates: how many the run computes that could be kept; `kept` of them are, in `nbytes` bytes.
        again: seconds to compute those that are kept (all candidates, when none is) from what is still there.
        write: to write them; `read`: to read them back.
        is_read: whether another step, a second output or a later candidate of a sweep needs them.
    """

    candidates: int
    kept: int
    nbytes: int
    again: float
    write: float
    read: float
    is_read: bool


@dataclass(frozen=True, slots=True)
class Keeping:
    """What a run puts into the cache besides statistics, what of each step, and the rates that decided it."""

    targets: tuple[Target, ...] = ()
    steps: Mapping[str, StepKeeping] = field(default_factory=dict)
    rates: Rates = NOMINAL


def what_to_keep(
    recipe: Recipe,
    compiled: Compiled,
    targets: Sequence[Target],
    needed: Sequence[int],
    known: Known,
    unkept: Set[int],
    circumstances: Circumstances,
    threads: int,
) -> Keeping:
    """What of the results that bringing `targets` to their places computes is to be kept.

    Args:
        needed: all that the run evaluates or reads, in topological order.
        unkept: nodes of steps with ``cache: never``.
    """
    if not targets or known.cache_is_off:
        return Keeping()
    graph = compiled.graph
    names = _names(recipe, compiled, known, set(needed) - unkept)
    if not names:
        return Keeping()
    asked = {node for node, (step, _) in names.items() if recipe.step(step).cache == "always"}
    uses = _uses(compiled, targets, known, needed, names, circumstances)
    given = _parts_of_views(graph, needed, known) - unkept
    question = Question(
        graph=graph,
        known=known,
        candidates=tuple(Candidate(node, uses[node], node in asked or node in given) for node in sorted(names)),
        needed=needed,
        given=given,
        forgotten=unkept,
    )
    rates = circumstances.rates(lambda: seconds_at_stake(question, circumstances.costs, threads))
    verdicts = decide(question, rates, circumstances.costs, threads, circumstances.room)
    kept = [Target(i, name, step, None) for i, (step, name) in names.items() if verdicts[i].is_kept]
    by_step: dict[str, list[Verdict]] = {}
    for i, (step, _) in names.items():
        by_step.setdefault(step, []).append(verdicts[i])
    return Keeping(tuple(kept), {step: _summary(found) for step, found in by_step.items()}, rates)


def _names(recipe: Recipe, compiled: Compiled, known: Known, waiting: Collection[int]) -> dict[int, tuple[str, str]]:
    """(step, tensor) of each result that could be kept, by node; steps that ask for theirs first have their say.

    Tied tensors, and steps that say the same, are one value.
    """
    found: dict[int, tuple[str, str]] = {}
    for step in sorted(recipe.steps, key=lambda step: step.cache != "always"):
        if step.cache == "never" or step.name not in compiled.results:
            continue
        for name, tensor in compiled.results[step.name].tensors.items():
            node = compiled.graph[tensor.node]
            if node.id in waiting and node.id not in found and node.kind != "load" and not is_known(node, known):
                found[node.id] = (step.name, name)
    return found


def _uses(
    compiled: Compiled,
    targets: Sequence[Target],
    known: Known,
    needed: Sequence[int],
    results: Collection[int],
    circumstances: Circumstances,
) -> dict[int, float]:
    """How often each of `results` is wanted again: see `graph.policy`."""
    graph = compiled.graph
    readers: dict[int, set[str]] = {node: set() for node in results}
    for name, result in compiled.results.items():
        for tensor in result.tensors.values():
            if tensor.node in readers:
                readers[tensor.node].add(name)
    owners = _Owners(compiled)
    for i in needed:
        for j in graph[i].inputs:
            if j in readers and not is_known(graph[i], known) and (owner := owners.of(i)) is not None:
                readers[j].add(owner)
    outputs = _outputs(graph, targets, results)
    found: dict[int, float] = {}
    for node in results:
        is_read = len(readers[node]) > 1 or len(outputs.get(node, ())) > 1
        times = float(circumstances.wanted_again.get(graph[node].key or "", 0))
        found[node] = times if circumstances.is_last_use else max(1.0 if is_read else UNREAD, times)
    return found


def _outputs(graph: Graph, targets: Sequence[Target], results: Collection[int]) -> dict[int, set[str]]:
    """The outputs that each result goes to, rounded or as it is."""
    found: dict[int, set[str]] = {}
    for target in targets:
        for i in (target.node, *graph[target.node].inputs):
            if i in results:
                found.setdefault(i, set()).add(target.output)
    return found


def _parts_of_views(graph: Graph, needed: Sequence[int], known: Known) -> frozenset[int]:
    """The computed values that views are read from: they go through the cache in any case."""
    views = [graph[i] for i in needed if graph[i].kind == "view" and not is_known(graph[i], known)]
    return frozenset(j for view in views for j in view.inputs if graph[j].kind not in ("load", "view"))


class _Owners:
    """Which step was the first to need a node; none, of those that only an output needs."""

    def __init__(self, compiled: Compiled) -> None:
        spans = sorted((result.nodes.start, result.nodes.stop, name) for name, result in compiled.results.items())
        self._spans = [span for span in spans if span[0] < span[1]]
        self._starts = [start for start, _, _ in self._spans]

    def of(self, node: int) -> str | None:
        at = bisect_right(self._starts, node) - 1
        if at < 0 or node >= self._spans[at][1]:
            return None
        return self._spans[at][2]


def _summary(verdicts: Sequence[Verdict]) -> StepKeeping:
    kept = [verdict for verdict in verdicts if verdict.is_kept]
    shown = kept or verdicts
    return StepKeeping(
        candidates=len(verdicts),
        kept=len(kept),
        nbytes=sum(verdict.nbytes for verdict in shown),
        again=sum(verdict.again for verdict in shown),
        write=sum(verdict.write for verdict in shown),
        read=sum(verdict.read for verdict in shown),
        is_read=any(verdict.uses > UNREAD for verdict in verdicts),
    )
