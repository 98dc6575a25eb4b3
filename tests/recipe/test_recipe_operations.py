"""Steps that are one operation on one input, under its own name: `sparsify: {delta: STEP, density: 0.5}`."""

from __future__ import annotations

import pytest
from recipe_texts import marked, places, read, step_with

from mergeflow.graph.check import step_path
from mergeflow.methods.table import METHODS
from mergeflow.recipe.fields import OPERATIONS
from mergeflow.recipe.records import Branch, Input, StepReference

RECIPE = """\
mergeflow: 1
models: {base: ./base, math: ./math}
vars: {density: 0.5}
steps:
  skill: {task_vector: {model: math, base: base}}
  thin:
    sparsify:
      delta: ▶skill
      ▶method: random
      density: [{filter: mlp, value: ▶"${density}"}, {value: [0.1, 0.3]}]
    dtype: bfloat16
  final:
    merge_method: task_arithmetic
    base_model: base
    models: [{model: thin, parameters: {weight: 1}}]
"""


def test_an_operation_is_a_step_of_one_input() -> None:
    """It reads as the merge that it means: one input, the rest of the body as the step's parameters."""
    text, marks = marked(RECIPE)
    recipe = read(text)
    assert recipe.problems == ()
    step = recipe.step("thin")
    assert step.merge_method == "sparsify"
    assert step.base is None
    assert step.dtype == "bfloat16"
    position = step.position("models[0].model")
    assert step.inputs == (Input(StepReference("skill"), {}, position),)
    first, second = step.parameters["density"].branches
    assert (first.value, first.filter) == (0.5, "mlp")
    assert second.value == (0.1, 0.3)
    assert step.parameters["method"].branches == (Branch("random", None, step.position("parameters.method")),)
    assert position is not None
    assert (position.line, position.column) == marks[0]


def test_later_findings_stand_at_the_field_as_written() -> None:
    """What is found of a parameter or source afterwards has the place and the path it has in the file."""
    text, marks = marked(RECIPE)
    step = read(text).step("thin")
    place = step.position("parameters.density[0].value")
    assert place is not None
    assert (place.line, place.column) == marks[2]
    assert step_path(step, "native", "parameters.density") == "steps.thin.sparsify.density"
    assert step_path(step, "native", "parameters") == "steps.thin.sparsify"
    assert step_path(step, "native", "models[0].model") == "steps.thin.sparsify.delta"
    assert step_path(read(text).step("skill"), "native", "base_model") == "steps.skill.task_vector.base"
    assert step_path(read(text).step("final"), "native", "parameters.x") == "steps.final.parameters.x"


@pytest.mark.parametrize(
    ("body", "message", "path"),
    [
        ("sparsify: ▶{density: 0.5}", "'delta' is missing", "sparsify"),
        ("sparsify: {▶detla: ./a, density: 0.5}", "did you mean 'delta'?", "sparsify.detla"),
        ("sparsify: ▶./a", "expected a mapping, found a text", "sparsify"),
        ("sparsify: {delta: ./a, density: ▶}", "no value", "sparsify.density"),
        ("sparsify: {delta: ./a}\n▶parameters: {density: 1}", "has no place beside 'sparsify'", "parameters"),
        ("task_vector: {model: ./a, base: ./b}\n▶sparsify: {delta: ./a}", "has no place beside", "sparsify"),
    ],
)
def test_mistake(body: str, message: str, path: str) -> None:
    """A mistake in an operation is one error, with its place, its path and the rule."""
    text, expected = marked(step_with(body))
    recipe = read(text)
    assert [problem.path for problem in recipe.problems] == [f"steps.only.{path}"]
    assert message in recipe.problems[0].message
    assert places(recipe) == expected


def test_a_cycle_is_reported_at_the_source() -> None:
    """A step that reads itself is told so at the field that names it."""
    text, expected = marked("mergeflow: 1\nsteps:\n  only: {sparsify: {delta: ▶only, density: 1}}\n")
    assert places(read(text)) == expected


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_a_method(name: str) -> None:
    """Each has a method of its name, whose parameters are not called like its sources."""
    method = METHODS[name]
    sources = OPERATIONS[name].sources
    assert all(parameter.scope == "shared" for parameter in method.parameters)
    assert not {parameter.name for parameter in method.parameters} & set(sources)
    assert ("base" in sources) == (method.base == "required")
    assert method.gives == "delta"
