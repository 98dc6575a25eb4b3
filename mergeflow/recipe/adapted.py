"""``halfway+./lora``, where halfway is a step: the steps that add the adapter to its result.

An adapter is a delta, and adding it is task arithmetic:

    halfway+./lora:   {merge_method: task_arithmetic, base_model: halfway, models: [{model: the delta, weight 1}]}
    the delta:        {task_vector: {adapter: ./lora, base: halfway}}

Their names cannot be written in a recipe, so they are nobody else's.
"""

from __future__ import annotations

from collections.abc import Iterator

from mergeflow.recipe.records import Branch, Input, ModelReference, Setting, Step, StepReference
from mergeflow.recipe.sources import Adapted, Names
from mergeflow.recipe.variables import NAME


def adapted_steps(names: Names) -> tuple[Step, ...]:
    """The steps for every step's result that is wanted with adapters."""
    return tuple(step for name, adapted in names.adapted.items() for step in _steps(name, adapted))


def is_written(step: Step) -> bool:
    """Whether a step stands in the recipe, and is not one of these."""
    return NAME.fullmatch(step.name) is not None


def _steps(name: str, adapted: Adapted) -> Iterator[Step]:
    base = StepReference(adapted.step.name)
    places = {"": adapted.position}
    deltas = []
    for adapter in adapted.step.adapters:
        delta = Input(ModelReference("", adapters=(adapter,)), position=adapted.position)
        deltas.append(f"{name}: the delta of {adapter}")
        yield Step(deltas[-1], "task_vector", (delta,), base, positions=places, path=adapted.path)
    one = Setting((Branch(1.0, position=adapted.position),), adapted.position)
    inputs = tuple(Input(StepReference(delta), {"weight": one}, adapted.position) for delta in deltas)
    yield Step(name, "task_arithmetic", inputs, base, positions=places, path=adapted.path)
