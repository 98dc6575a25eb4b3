"""Random methods obey the laws too: a mask depends on the seed and on the tensor it masks, and on nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from three_steps import options, three_models, weights, write_recipe
from tiny_checkpoints import read_model

import mergeflow
from mergeflow.graph.tasks import Task
from mergeflow.workflow.report import RunReport

RECIPE = """\
mergeflow: 1
seed: 3
models: {base: ./base, math: ./math, code: ./code}
steps:
  math_skill:
    task_vector: {model: math, base: base}
  thin:
    sparsify: {delta: math_skill, method: della, density: 0.5, epsilon: 0.3, rescale: true}
  final:
    merge_method: dare_ties
    base_model: base
    models:
      - {model: thin, parameters: {weight: 0.6}}
      - {model: code, parameters: {weight: 0.4, density: 0.4}}
outputs:
  final: {path: ./out}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return three_models(tmp_path_factory.mktemp("random"), torch.bfloat16)


def run(folder: Path, place: Path, text: str = RECIPE, **wishes: object) -> tuple[dict[str, torch.Tensor], RunReport]:
    """The output's tensors, and the report, of a run without a cache unless one is wished for."""
    recipe = write_recipe(folder, text, f"{place.name}.yaml")
    report = mergeflow.run(recipe, place, options=options(folder, **({"cache": None} | wishes)))
    return read_model(place), report


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_how_a_recipe_is_run_changes_no_mask(folder: Path, tmp_path: Path) -> None:
    """Blocks, memory, threads, processes and the cache leave every byte of a random merge as it is."""
    run(folder, tmp_path / "expected", workers=1)
    expected = weights(tmp_path / "expected")
    for number, wishes in enumerate(
        (
            {"workers": 4},
            {"memory": 1},
            {"scheduler": "processes"},
            {"cache": tmp_path / "c"},
            {"cache": tmp_path / "c"},
        )
    ):
        run(folder, tmp_path / str(number), **wishes)
        assert weights(tmp_path / str(number)) == expected, wishes


def test_names_and_order_change_no_mask(folder: Path, tmp_path: Path) -> None:
    """A step of another name, and models in another order, have the same masks."""
    expected, _ = run(folder, tmp_path / "expected")
    renamed, _ = run(folder, tmp_path / "renamed", RECIPE.replace("thin", "other"))
    assert same(renamed, expected)
    first, second = (line for line in RECIPE.splitlines(keepends=True) if "{model: " in line and "weight" in line)
    turned, _ = run(folder, tmp_path / "turned", RECIPE.replace(first, "").replace(second, second + first))
    assert same(turned, expected)


def test_a_seed_changes_what_is_drawn_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    """Another seed computes what depends on chance again, and says so; statistics before it are read from the cache."""
    cache = tmp_path / "cache"
    expected, before = run(folder, tmp_path / "3", cache=cache)
    recipe = write_recipe(folder, RECIPE.replace("seed: 3", "seed: 4"), "3.yaml")
    plan = mergeflow.plan(recipe, tmp_path / "4", options=options(folder, cache=cache))
    assert {step.name: step.why for step in plan.steps}["thin"] == ("seed 3 -> 4 (15 tensors)",)
    changed, after = run(folder, tmp_path / "4", RECIPE.replace("seed: 3", "seed: 4"), cache=cache)
    assert not same(changed, expected)
    # The sum of each whole delta is known; those of thinned ones are not.
    assert 2 * after.statistics["computed"] == before.statistics["computed"]


def test_the_stream_is_the_key_of_the_first_input(folder: Path) -> None:
    """A kernel that draws is told the key of what it masks; it is no parameter of the node."""
    recipe = mergeflow.load(write_recipe(folder, RECIPE, "stream.yaml"))
    mergeflow.run(recipe, folder / "stream", options=options(folder, cache=None))
    plan = mergeflow.plan(recipe, folder / "new", options=options(folder, cache=None))
    drawing = [
        (program.instructions[it.inputs[0]].key, it.parameters["stream"])
        for task in plan.tasks
        if isinstance(task, Task)
        for program in task.programs
        for it in program.instructions
        if it.op in ("drop", "magprune")
    ]
    assert drawing
    assert all(key == stream and len(key) == 64 for key, stream in drawing)
