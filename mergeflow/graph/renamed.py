"""Which step of the last run a step is: that of its name, else one that went by another name and made the same."""

from __future__ import annotations

from collections.abc import Mapping

from mergeflow.graph.history import UNKNOWN, History, StepHistory


def former_names(then: History, now: History) -> dict[str, str]:
    """The name that each step had in the last run; steps that were not in it are left out."""
    found = {name: name for name in now.steps if name in then.steps}
    new = [name for name in now.steps if name not in found]
    gone = {name: step for name, step in then.steps.items() if name not in now.steps}
    if not new or not gone:
        return found
    by_value = {pair: name for name, step in reversed(gone.items()) for pair in _values(step)}
    by_saying: dict[object, list[str]] = {}
    for name, step in gone.items():
        by_saying.setdefault(_saying(step), []).append(name)
    taken: set[str] = set()
    for name in new:
        step = now.steps[name]
        same = (by_value[pair] for pair in _values(step) if pair in by_value)
        alike = iter(by_saying.get(_saying(step), ()))
        former = next((it for it in (*same, *alike) if it not in taken), None)
        if former is not None:
            found[name] = former
            taken.add(former)
    return found


def _values(step: StepHistory) -> set[tuple[str, str]]:
    return {(name, key) for name, key in step.keys.items() if key != UNKNOWN}


def _saying(step: StepHistory) -> object:
    """What a step says, but for the numbers in it: its method and which settings are written."""
    settings: Mapping[str, str] = step.settings
    return step.method, tuple(sorted(settings))
