"""What a plan puts into the cache and takes out of it, by key: how candidates of a sweep know what they share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mergeflow.graph.plan import Plan
from mergeflow.graph.program import Program


@dataclass(frozen=True, slots=True)
class Traffic:
    """Keys of tensors and of statistics that a run writes to the cache (`made`) and reads from it (`used`)."""

    made_tensors: frozenset[str] = frozenset()
    made_statistics: frozenset[str] = frozenset()
    used_tensors: frozenset[str] = frozenset()
    used_statistics: frozenset[str] = frozenset()

    def __or__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.made_tensors | other.made_tensors,
            self.made_statistics | other.made_statistics,
            self.used_tensors | other.used_tensors,
            self.used_statistics | other.used_statistics,
        )


def traffic_of(plan: Plan) -> Traffic:
    """What carrying out a plan puts into the cache and takes out of it."""
    programs = [program for wave in (*plan.before, plan.tasks) for task in wave for program in task.programs]
    return Traffic(
        made_tensors=frozenset(key for program in programs for key in _kept(program)),
        made_statistics=frozenset(
            it.key for program in programs for it in program.instructions if it.kind == "statistic" and it.keep
        ),
        used_tensors=frozenset(it.key for program in programs for it in program.instructions if it.kind == "cached"),
        used_statistics=frozenset(it.key for program in programs for it in program.instructions if it.kind == "record"),
    )


def _kept(program: Program) -> Iterator[str]:
    for sink in program.sinks:
        instruction = program.instructions[sink.instruction]
        if sink.place is None and instruction.keep:
            yield instruction.key
