"""mergekit files in the native form: the same steps, the same comments, the same models."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipe_texts import MERGEKIT

from mergeflow.errors import RecipeError
from mergeflow.recipe.convert import convert
from mergeflow.recipe.describe import describe_step
from mergeflow.recipe.read import read_recipe
from mergeflow.recipe.records import Recipe

CASES = sorted((Path(__file__).parents[1] / "golden/cases").glob("*/config.yml"))
COMMENTED = """\
%YAML 1.1
---
# the first
name: halfway   # its name
merge_method: linear
models:
  - {model: a, wieght: 3, parameters: {weight: 1}}   # the one
  - paramaters: 1
    model: ./b
    parameters:
      # why
      weight: 1
      foo: [1,
        2]
whatever:
  - x
--- # second
models: [{model: halfway}, {model: 'org/x'}]
base_model: halfway
merge_method: slerp
merge_method: slerp
parameters:
  t: 0.5
chat_template: |
  {{ messages }} and ${x} more

  text
---
"""
CONVERTED = """\
# Converted from merge.yml by `mergeflow convert`.
mergeflow: 1
steps:
  halfway:
    # the first
    # name: halfway   # its name
    merge_method: linear
    models:
      - {model: a, parameters: {weight: 1}}   # the one
      - model: ./b
        parameters:
          # why
          weight: 1
          # foo: [1,
          #   2]
    # whatever:
    #   - x
  merge:
    # second
    models: [{model: halfway}, {model: 'org/x'}]
    base_model: halfway
    # merge_method: slerp
    merge_method: slerp
    parameters:
      t: 0.5
    chat_template: |
      {{ messages }} and $${x} more

      text
outputs:
  merge:  # a folder, such as ./merge; without one it is given to `mergeflow run`
"""


def mergekit(text: str, folder: Path) -> Recipe:
    return read_recipe("merge.yml", text=text, working_folder=folder)


def native(text: str, folder: Path) -> Recipe:
    return read_recipe(folder / "recipe.yaml", text=text)


def described(recipe: Recipe) -> list[list[str]]:
    return [describe_step(step)[1:] for step in recipe.steps]


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.parent.name)
def test_every_golden_configuration(path: Path) -> None:
    """Each one is a native recipe of the same step."""
    recipe = read_recipe(path)
    again = native(convert(recipe, (), Path.cwd()), Path.cwd())
    assert again.form == "native"
    assert again.problems == ()
    assert described(again) == described(recipe)
    assert [output.step for output in again.outputs] == [output.step for output in recipe.outputs]


def test_text_and_comments_are_kept(tmp_path: Path) -> None:
    """What has no effect becomes a comment, or is cut out of its line; all else stays as it was written."""
    recipe = mergekit(COMMENTED, tmp_path)
    assert convert(recipe, ["documents[0].models[1].parameters.foo"], tmp_path) == CONVERTED


def test_paths_start_in_the_new_folder(tmp_path: Path) -> None:
    """Paths of models, also with adapters, lead from the recipe's folder to the same place; hub ids stay."""
    for name in ("a", "models/b", "lora"):
        (tmp_path / name).mkdir(parents=True)
    text = """\
merge_method: linear
base_model: models/b
models:
  - model: models/b
  - model: "a+lora"
  - model: {model: {path: a}, lora: ./lora}
  - model: org/chat@v1
  - model: /models/c
  - model: ../far
"""
    recipe = mergekit(text, tmp_path)
    converted = native(convert(recipe, (), tmp_path / "sub"), tmp_path / "sub")
    assert str(converted.steps[0].base) == "../models/b"
    assert [str(entry.source) for entry in converted.steps[0].inputs] == [
        "../models/b",
        "../a+../lora",
        "../a+../lora",
        "org/chat@v1",
        "/models/c",
        "../../far",
    ]


def test_names_of_documents_stay(tmp_path: Path) -> None:
    """The name of a document is no path, whatever folders there are; the adapter behind it is one."""
    for name in ("halfway", "lora"):
        (tmp_path / name).mkdir()
    text = "name: halfway\nmerge_method: linear\nmodels: [{model: ./a}]\n---\n"
    text += "merge_method: passthrough\nmodels: [{model: halfway+lora}]\n"
    converted = convert(mergekit(text, tmp_path), (), tmp_path / "sub")
    assert "{model: halfway+../lora}" in converted
    assert "{model: ../a}" in converted


def test_the_step_is_called_otherwise_than_its_models(tmp_path: Path) -> None:
    """A model that is called as the step would be is still the model."""
    (tmp_path / "merge").mkdir()
    recipe = mergekit("merge_method: linear\nmodels: [{model: merge}]\n", tmp_path)
    (step,) = native(convert(recipe, (), tmp_path), tmp_path).steps
    assert step.name != "merge"
    assert str(step.inputs[0].source) == "merge"


def test_flow_style(tmp_path: Path) -> None:
    """A file that is one mapping in braces is converted too."""
    text = "{merge_method: slerp, wrong: 1,\n models: [{model: ./a}, {model: ./b}], parameters: {t: 0.5, x: 1}}\n"
    converted = convert(mergekit(text, tmp_path), ["parameters.x"], tmp_path)
    assert "wrong" not in converted
    assert "parameters: {t: 0.5}" in converted
    assert native(converted, tmp_path).problems == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("merge_method: linear\nmodels: []", "'models' is empty"),
        ("mergeflow: 1\nsteps: {a: {task_vector: {model: ./a, base: ./b}}}", "is a native recipe already"),
        ("x: &m ./a\nmerge_method: linear\nmodels: [{model: *m}]", "cannot be converted line by line"),
        (
            MERGEKIT.replace("models/a", "base") + "tokenizer: {source: base}\n---\nname: base\n" + MERGEKIT,
            "cannot be converted line by line",
        ),
    ],
)
def test_refused(text: str, message: str, tmp_path: Path) -> None:
    """A file with errors, a native one, and what would come out as something else: an error, never a wrong recipe."""
    with pytest.raises(RecipeError, match=message):
        convert(mergekit(text, tmp_path), (), tmp_path)
