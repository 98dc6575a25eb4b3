"""Steps with roles, from files to files: a scaled delta, a difference carried over, the models of two tasks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_checkpoints import llama, read_model

import mergeflow
from mergeflow.errors import RecipeError

NAMES = ("base", "a", "b")
HEAD = "mergeflow: 1\nmodels: {base: ./base, a: ./a, b: ./b}\nsteps:\n"


def models(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Three small models in `folder`, and their tensors by name."""
    return {name: read_model(llama(folder / name, seed)) for seed, name in enumerate(NAMES)}


def run(folder: Path, steps: str, *outputs: str) -> tuple[dict[str, dict[str, torch.Tensor]], mergeflow.RunReport]:
    """Runs a recipe of these steps: the written tensors by output, and the report."""
    written = "".join(f"  {name}: {{path: ./out-{name}}}\n" for name in outputs)
    (folder / "recipe.yaml").write_text(f"{HEAD}{steps}outputs:\n{written}")
    report = mergeflow.run(folder / "recipe.yaml", options=mergeflow.Options(cache=None))
    return {name: read_model(folder / f"out-{name}") for name in outputs}, report


def test_a_delta_is_scaled_by_layer(tmp_path: Path) -> None:
    """A scaled task vector has its factor per tensor: a filter, and a gradient over the layers."""
    tensors = models(tmp_path)
    steps = (
        "  skill: {task_vector: {model: a, base: base}}\n"
        "  weaker: {scale: {delta: skill, factor: [{filter: q_proj, value: [0.25, 0.5]}, {value: 2.0}]}}\n"
        "  final: {merge_method: task_arithmetic, base_model: base, models: [{model: weaker}], "
        "parameters: {weight: 1}}\n"
    )
    made, _ = run(tmp_path, steps, "final")
    for name, tensor in made["final"].items():
        factor = 2.0 if "q_proj" not in name else 0.25 if "layers.0." in name else 0.5
        base = tensors["base"][name]
        torch.testing.assert_close(tensor, base + factor * (tensors["a"][name] - base), rtol=0, atol=1e-5)


def test_a_difference_is_carried_over(tmp_path: Path) -> None:
    """add_difference takes its three models by their place: base + alpha * (first - second)."""
    tensors = models(tmp_path)
    steps = (
        "  final: {merge_method: add_difference, base_model: base, models: [{model: a}, {model: b}], "
        "parameters: {alpha: 0.5}}\n"
    )
    made, _ = run(tmp_path, steps, "final")
    for name, tensor in made["final"].items():
        expected = tensors["base"][name] + 0.5 * (tensors["a"][name] - tensors["b"][name])
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-5)


def test_the_models_of_two_tasks_share_one_election(tmp_path: Path) -> None:
    """Two emr steps that differ in the task they ask for unify once, and restore each task's signs and size."""
    tensors = models(tmp_path)
    of_task = (
        "{{merge_method: emr, base_model: base, "
        "models: [{{model: a, parameters: {{task: {}}}}}, {{model: b, parameters: {{task: {}}}}}]}}"
    )
    steps = f"  for_a: {of_task.format('true', 'false')}\n  for_b: {of_task.format('false', 'true')}\n"
    made, report = run(tmp_path, steps, "for_a", "for_b")
    assert report.tensors.computed == 2 * len(tensors["base"])
    for output, task in (("for_a", "a"), ("for_b", "b")):
        for name, tensor in made[output].items():
            change = tensor - tensors["base"][name]
            own = tensors[task][name] - tensors["base"][name]
            assert float((change * own).min()) > -1e-5
            assert float(change.abs().sum()) == pytest.approx(float(own.abs().sum()), rel=1e-4)


def test_a_step_says_what_it_lacks(tmp_path: Path) -> None:
    """A factor that is missing or misspelt, weights where a delta belongs, and a role that is empty: all at once."""
    models(tmp_path)
    steps = (
        "  skill: {task_vector: {model: a, base: base}}\n"
        "  no_factor: {scale: {delta: skill}}\n"
        "  misspelt: {scale: {delta: skill, facto: 2}}\n"
        "  of_weights: {scale: {delta: a, factor: 2}}\n"
        "  one_role: {merge_method: add_difference, base_model: a, models: [{model: b}]}\n"
    )
    (tmp_path / "recipe.yaml").write_text(HEAD + steps)
    with pytest.raises(RecipeError) as raised:
        mergeflow.plan(tmp_path / "recipe.yaml")
    said = "\n".join(str(problem) for problem in raised.value.problems)
    for expected in (
        "scale needs the parameter 'factor' for step no_factor",
        "did you mean 'factor'?",
        "a is weights; scale takes delta",
        "add_difference needs at least 2 models besides its base, not 1",
    ):
        assert expected in said
