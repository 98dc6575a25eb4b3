"""Steps in the order they can be computed in."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence

from mergeflow.recipe.cycles import reads
from mergeflow.recipe.records import Step


def steps_in_order(steps: Sequence[Step]) -> list[Step]:
    """Every step after those it reads; ties keep the order of the recipe (Kahn 1962).

    Steps on a cycle, and those that depend on one, are never ready and so left out: the reader of the recipe has
    reported the cycle.
    """
    place = {step.name: index for index, step in enumerate(steps)}
    needs = [place.keys() & reads(step) for step in steps]
    missing = [len(names) for names in needs]
    readers: dict[str, list[int]] = defaultdict(list)
    for index, names in enumerate(needs):
        for name in names:
            readers[name].append(index)

    ready = [index for index, count in enumerate(missing) if count == 0]
    ordered: list[Step] = []
    while ready:
        step = steps[heapq.heappop(ready)]
        ordered.append(step)
        for index in readers[step.name]:
            missing[index] -= 1
            if missing[index] == 0:
                heapq.heappush(ready, index)
    return ordered
