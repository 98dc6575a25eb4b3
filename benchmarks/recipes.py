"""The recipes that are measured. The merges are mergekit files, so that the peer reads the very same ones."""

from __future__ import annotations

from pathlib import Path

MERGES = ("linear", "slerp", "ties")


def merge_recipe(name: str, models: Path) -> str:
    """One of MERGES: linear of two models, slerp of two, ties of three fine-tunes and their base at density 0.5."""
    return {"linear": linear, "slerp": slerp, "ties": ties}[name](models)


def linear(models: Path) -> str:
    return f"""merge_method: linear
models:
  - {{model: {models}/tune-1, parameters: {{weight: 0.6}}}}
  - {{model: {models}/tune-2, parameters: {{weight: 0.4}}}}
dtype: bfloat16
"""


def slerp(models: Path) -> str:
    return f"""merge_method: slerp
base_model: {models}/tune-1
models:
  - model: {models}/tune-1
  - model: {models}/tune-2
parameters: {{t: 0.4}}
dtype: bfloat16
"""


def ties(models: Path) -> str:
    tunes = "".join(
        f"  - {{model: {models}/tune-{index}, parameters: {{weight: 0.4, density: 0.5}}}}\n" for index in (1, 2, 3)
    )
    return f"""merge_method: ties
base_model: {models}/base
models:
{tunes}dtype: bfloat16
"""


def ties_then_slerp(models: Path) -> str:
    """Three task vectors, TIES, and a slerp with the base at a `t` that can be set."""
    skills = "".join(
        f"  skill_{index}: {{task_vector: {{model: {models}/tune-{index}, base: {models}/base}}}}\n"
        for index in (1, 2, 3)
    )
    inputs = "".join(
        f"      - {{model: skill_{index}, parameters: {{weight: 0.4, density: 0.5}}}}\n" for index in (1, 2, 3)
    )
    return f"""mergeflow: 1
vars: {{t: 0.8}}
steps:
{skills}  skills:
    merge_method: ties
    base_model: {models}/base
    models:
{inputs}  final:
    merge_method: slerp
    base_model: {models}/base
    models: [{{model: {models}/base}}, {{model: skills}}]
    parameters: {{t: "${{t}}"}}
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
