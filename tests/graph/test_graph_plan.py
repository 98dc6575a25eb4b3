"""Plans: what would run, what is known, and why."""

from __future__ import annotations

from pathlib import Path

import pytest
from three_models import RECIPE, settle, three_models
from tiny_checkpoints import llama

import mergeflow
from mergeflow.graph.plan import Plan, StepPlan


def planned(folder: Path, **variables: object) -> Plan:
    return mergeflow.plan(mergeflow.load(folder / "recipe.yaml", **variables), folder / "out")


def step(plan: Plan, name: str) -> StepPlan:
    return next(step for step in plan.steps if step.name == name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with three models and a recipe of four steps over them."""
    return three_models(tmp_path)


def test_before_the_first_run_nothing_is_known(folder: Path) -> None:
    """Inputs never read have no digest, so everything is to be computed; no weights are read to say so."""
    plan = planned(folder)
    assert plan.digests_missing > 0
    assert [step.computed for step in plan.steps] == [step.tensors for step in plan.steps]
    assert all(step.why == ("first run of this recipe on this machine",) for step in plan.steps)


def test_after_a_run_nothing_is_left_to_do(folder: Path) -> None:
    """The outputs are there: no task, no byte."""
    mergeflow.run(folder / "recipe.yaml", folder / "out")
    plan = planned(folder)
    assert plan.tasks == ()
    assert plan.bytes_read == plan.bytes_written == 0
    assert plan.outputs[0].count("kept") == len(plan.outputs[0].fates)


def test_a_changed_number_is_named_and_only_its_statistics_are_unknown(folder: Path) -> None:
    """A density changed: the other model's thresholds are known, and the plan says what changed."""
    mergeflow.run(folder / "recipe.yaml", folder / "out")
    plan = planned(folder, density=0.2)
    ties = step(plan, "skills")
    assert "skills.models[0].parameters.density 0.5 -> 0.2 (9 tensors)" in ties.why
    assert 0 < ties.statistics_known < ties.statistics
    (why,) = step(plan, "final").why
    assert why.startswith("because skills changed: skills.models[0].parameters.density 0.5 -> 0.2 (")


def test_a_changed_input_is_named(folder: Path) -> None:
    """Other bytes in a model are a reason the plan names, and that it has not read them yet."""
    mergeflow.run(folder / "recipe.yaml", folder / "out")
    llama(folder / "b", 99)
    settle()
    assert step(planned(folder), "skill_b").why == ("b/model.safetensors changed, and is not hashed yet",)


def test_the_same_recipe_under_another_name_is_not_explained_by_its_last_run(folder: Path) -> None:
    """What explains is this recipe file's last run; what is reused depends on keys alone."""
    mergeflow.run(folder / "recipe.yaml", folder / "out")
    (folder / "copy.yaml").write_text(RECIPE)
    plan = mergeflow.plan(folder / "copy.yaml", folder / "other")
    assert step(plan, "final").why == ("first run of this recipe on this machine",)
    assert step(plan, "final").statistics_known == step(plan, "final").statistics


def test_the_plan_states_bytes_and_memory(folder: Path) -> None:
    """Bytes to write are those of the output's tensors; peak memory is a number before anything runs."""
    plan = planned(folder)
    report = mergeflow.run(folder / "recipe.yaml", folder / "out")
    assert plan.bytes_written == report.bytes.written
    assert plan.peak_bytes > 0
