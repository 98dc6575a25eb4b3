"""Which steps lead to which: cycles, steps that nothing leads to an output, and steps that nothing reads."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from mergeflow.recipe.fields import OPERATIONS
from mergeflow.recipe.findings import Findings
from mergeflow.recipe.nodes import join
from mergeflow.recipe.places import named_sources
from mergeflow.recipe.records import Step, StepReference


def reads(step: Step) -> tuple[str, ...]:
    """The names of the steps that `step` reads, for its weights or for its vocabulary."""
    names = (source.name for source, _ in named_sources(step) if isinstance(source, StepReference))
    return tuple(dict.fromkeys(names))


def find_cycles(steps: Sequence[Step], guesses: Collection[tuple[str, str]] = ()) -> list[tuple[str, ...]]:
    """Cycles of steps, each once, from its step that stands first in the recipe; no two share a step.

    A walk in depth from each step in turn, with its own stack: a chain of steps may be longer than Python's.

    Args:
        guesses: (reader, step) pairs that only a guess at a mistyped name made: no cycle goes through them.
    """
    needs = {step.name: tuple(name for name in reads(step) if (step.name, name) not in guesses) for step in steps}
    place = {name: index for index, name in enumerate(needs)}
    finished: set[str] = set()
    tangled: set[str] = set()
    cycles: list[tuple[str, ...]] = []
    for start in needs:
        for cycle in _walk(start, needs, finished):
            if tangled.isdisjoint(cycle):
                cycles.append(_from_first(cycle, place))
                tangled.update(cycle)
    return cycles


def _walk(start: str, needs: Mapping[str, tuple[str, ...]], finished: set[str]) -> Iterator[tuple[str, ...]]:
    """Every cycle that a walk in depth from `start` closes; `finished` steps are not entered again."""
    if start in finished:
        return
    trail = {start: iter(needs[start])}
    while trail:
        current = next(reversed(trail))
        name = next(trail[current], None)
        if name is None:
            del trail[current]
            finished.add(current)
        elif name in trail:
            path = list(trail)
            yield tuple(path[path.index(name) :])
        elif name in needs and name not in finished:
            trail[name] = iter(needs[name])


def _from_first(cycle: tuple[str, ...], place: Mapping[str, int]) -> tuple[str, ...]:
    first = min(range(len(cycle)), key=lambda index: place[cycle[index]])
    return cycle[first:] + cycle[:first]


def report_cycles(steps: Sequence[Step], cycles: Iterable[tuple[str, ...]], findings: Findings) -> None:
    """An error for each cycle, at the field of its first step that reads the next."""
    by_name = {step.name: step for step in steps}
    for cycle in cycles:
        first, following = by_name[cycle[0]], (*cycle[1:], cycle[0])[0]
        path = _path_of_source(first, following)
        way = " -> ".join((*cycle, cycle[0]))
        message = f"steps form a cycle: {way}" if len(cycle) > 1 else f"a step cannot read itself: {way}"
        findings.error(message, first.position(path), join(first.path, path))


def _path_of_source(step: Step, name: str) -> str:
    """The field in which `step` reads the step `name`."""
    path = next(path for source, path in named_sources(step) if source == StepReference(name))
    method = step.merge_method
    if method not in OPERATIONS or method not in step.positions:
        return path
    return f"{method}.base" if path == "base_model" else f"{method}.{next(iter(OPERATIONS[method].sources))}"


def reached(steps: Sequence[Step], wanted: Iterable[str]) -> set[str]:
    """The names of the steps that the `wanted` ones need, these included."""
    needs = {step.name: reads(step) for step in steps}
    found: set[str] = set()
    waiting = list(wanted)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(needs.get(name, ()))
    return found


def unread(steps: Sequence[Step]) -> list[Step]:
    """The steps that no other step reads, in the order of the recipe."""
    read = {name for step in steps for name in reads(step) if name != step.name}
    return [step for step in steps if step.name not in read]
