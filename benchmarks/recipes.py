"""The recipes that are measured. The merges are mergekit files, so that the peer reads the very same ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Merge:
    """One merge of the benchmark's models.

    Args:
        tunes: how many of the three fine-tunes take part, listed in order.
        base: the model that is `base_model`: ``base``, a fine-tune, or none.
        weights: the models' weights; none for methods that have no such parameter.
        own: parameters that all the models share the value of.
        shared: parameters of the merge.
    """

    method: str
    tunes: int = 3
    base: str | None = "base"
    weights: tuple[float, ...] = ()
    own: Mapping[str, float] = field(default_factory=dict)
    shared: Mapping[str, float] = field(default_factory=dict)


ALIKE = (0.4, 0.4, 0.4)

MERGES: Mapping[str, Merge] = {
    merge.method: merge
    for merge in (
        Merge("linear", tunes=2, base=None, weights=(0.6, 0.4)),
        Merge("slerp", tunes=2, base="tune-1", shared={"t": 0.4}),
        Merge("ties", weights=ALIKE, own={"density": 0.5}),
        Merge("dare_ties", weights=ALIKE, own={"density": 0.5}),
        Merge("della", weights=ALIKE, own={"density": 0.5, "epsilon": 0.15}),
        Merge("breadcrumbs", weights=ALIKE, own={"density": 0.5, "gamma": 0.01}),
        Merge("sce", shared={"select_topk": 0.5}),
        Merge("karcher", base=None),
        Merge("multislerp", base=None, weights=ALIKE),
        Merge("nuslerp", tunes=2, weights=(0.6, 0.4)),
        Merge("model_stock"),
    )
}


def merge_recipe(name: str, models: Path) -> str:
    """One of MERGES as a mergekit file over the models in a folder."""
    return merge_recipe_of(MERGES[name], models)


def merge_recipe_of(merge: Merge, models: Path) -> str:
    """A merge as a mergekit file over the models in a folder."""
    lines = [f"merge_method: {merge.method}"]
    lines += [f"base_model: {models}/{merge.base}"] if merge.base else []
    lines += ["models:", *(_model(merge, index, models) for index in range(merge.tunes))]
    lines += [f"parameters: {_mapping(merge.shared)}"] if merge.shared else []
    return "\n".join([*lines, "dtype: bfloat16", ""])


def _model(merge: Merge, index: int, models: Path) -> str:
    own = {"weight": merge.weights[index], **merge.own} if merge.weights else merge.own
    parameters = f", parameters: {_mapping(own)}" if own else ""
    return f"  - {{model: {models}/tune-{index + 1}{parameters}}}"


def _mapping(values: Mapping[str, float]) -> str:
    return "{" + ", ".join(f"{name}: {json.dumps(value)}" for name, value in values.items()) + "}"


def ties_then_slerp(models: Path) -> str:
    """Three task vectors, TIES, and a slerp with the base, at a `t` that can be set, and at another in one layer."""
    skills = "".join(
        f"  skill_{index}: {{task_vector: {{model: {models}/tune-{index}, base: {models}/base}}}}\n"
        for index in (1, 2, 3)
    )
    inputs = "".join(
        f"      - {{model: skill_{index}, parameters: {{weight: 0.4, density: 0.5}}}}\n" for index in (1, 2, 3)
    )
    return f"""mergeflow: 1
vars: {{t: 0.8, t_of_layer_1: 0.8}}
steps:
{skills}  skills:
    merge_method: ties
    base_model: {models}/base
    models:
{inputs}  final:
    merge_method: slerp
    base_model: {models}/base
    models: [{{model: {models}/base}}, {{model: skills}}]
    parameters: {{t: [{{filter: .layers.1., value: "${{t_of_layer_1}}"}}, {{value: "${{t}}"}}]}}
outputs:
  final: {{dtype: bfloat16}}
"""


def chain(models: Path, steps: int) -> str:
    """`steps` slerps in a row: each of the result so far with the next of the three fine-tunes."""
    lines = ["mergeflow: 1", "steps:"]
    result = f"{models}/base"
    for step in range(steps):
        tune = f"{models}/tune-{step % 3 + 1}"
        lines += [
            f"  step_{step}:",
            "    merge_method: slerp",
            f"    base_model: {result}",
            f"    models: [{{model: {result}}}, {{model: {tune}}}]",
            "    parameters: {t: 0.3}",
        ]
        result = f"step_{step}"
    return "\n".join([*lines, "outputs:", f"  {result}: {{dtype: bfloat16}}", ""])
