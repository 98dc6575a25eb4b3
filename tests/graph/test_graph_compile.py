"""Compiling: recipes over headers become graphs, and what does not fit is said, all at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_checkpoints import llama, llama_tensors, write_model

from mergeflow.errors import Problem
from mergeflow.execute.events import ignore
from mergeflow.graph.values import Compiled
from mergeflow.recipe.read import read_recipe
from mergeflow.workflow.models import compile_from_headers


def compiled(tmp_path: Path, text: str) -> Compiled:
    """A recipe's text, compiled in a folder with the models base, a and b."""
    for seed, name in enumerate(("base", "a", "b")):
        if not (tmp_path / name).exists():
            llama(tmp_path / name, seed, layers=3)
    (tmp_path / "recipe.yaml").write_text(text)
    return compile_from_headers(read_recipe(tmp_path / "recipe.yaml"), ignore, download=False)


def messages(found: Compiled) -> list[str]:
    return [problem.message for problem in found.problems]


TIES = """
mergeflow: 1
steps:
  skill: {task_vector: {model: ./a, base: ./base}}
  merged:
    merge_method: ties
    base_model: ./base
    models:
      - {model: skill, parameters: {weight: 0.6, density: 0.5}}
      - {model: ./b, parameters: {weight: 0.4, density: 0.3}}
outputs: {merged: {dtype: bfloat16}}
"""


def test_ties_lowers_to_shared_operations(tmp_path: Path) -> None:
    """A delta is used as it is, weights have their base subtracted, and each value is in the graph once.

    a ─┬ task_vector ─┬ kth ─ trim ─┐
    base ┤            └─────────────┤ consensus ─ add ─ cast
    b ─┴ task_vector ─┬ kth ─ trim ─┘
    """
    found = compiled(tmp_path, TIES)
    assert found.problems == ()
    name = "model.layers.0.mlp.down_proj.weight"
    (last,) = [tensor for tensor in found.outputs[0].tensors if tensor.name == name]
    ops = sorted(found.graph[i].op for i in found.graph.upstream([last.node]))
    assert ops == sorted(
        ["load"] * 3 + ["task_vector"] * 2 + ["kth_magnitude"] * 2 + ["trim"] * 2 + ["consensus", "add", "cast"]
    )


def test_an_output_has_the_dtype_it_asks_for_or_that_of_its_inputs(tmp_path: Path) -> None:
    """Declared: as declared. Not declared: as the tensors it was made from."""
    assert {tensor.dtype.name for tensor in compiled(tmp_path, TIES).outputs[0].tensors} == {"bfloat16"}
    plain = compiled(tmp_path, TIES.replace("{dtype: bfloat16}", "{path: ./out}"))
    assert {tensor.dtype.name for tensor in plain.outputs[0].tensors} == {"float32"}


def test_a_gradient_gives_each_layer_its_own_number(tmp_path: Path) -> None:
    """Three layers see 0, 0.5 and 1; what is outside the layers sees the first value."""
    found = compiled(
        tmp_path,
        "merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\nparameters: {t: [0.2, 0.4, 0.9]}\n",
    )
    # A mergekit file's paths start in the current folder, then in its own.
    assert messages(found) == []
    resolved = found.results["merge"].parameters
    layers = [resolved[f"model.layers.{i}.input_layernorm.weight"].shared["t"] for i in range(3)]
    assert layers == pytest.approx([0.2, 0.4, 0.9])
    assert resolved["model.norm.weight"].shared["t"] == 0.2


def test_models_of_different_depth_are_one_problem_that_says_so(tmp_path: Path) -> None:
    """Unequal layer counts are named as such, not as a hundred missing tensors."""
    llama(tmp_path / "a", 1, layers=3)
    llama(tmp_path / "b", 2, layers=5)
    (message,) = messages(compiled(tmp_path, LINEAR))
    assert "3 layers" in message
    assert "5" in message


LINEAR = """
mergeflow: 1
steps:
  mean:
    merge_method: linear
    models: [{model: ./a, parameters: {weight: 1}}, {model: ./b, parameters: {weight: 1}}]
"""


def test_a_tensor_missing_in_one_model_is_named(tmp_path: Path) -> None:
    """The model that lacks it, and what becomes of it: a warning."""
    tensors = llama_tensors(2, 3)
    del tensors["model.norm.weight"]
    write_model(tmp_path / "b", tensors)
    (problem,) = compiled(tmp_path, LINEAR).problems
    assert problem.message == "./b lacks model.norm.weight: carried over unchanged from ./a"
    assert problem.severity == "warning"


def test_different_shapes_are_named_with_both_shapes(tmp_path: Path) -> None:
    """A shape mismatch shows the tensor, the models and their shapes."""
    tensors = llama_tensors(2, 3)
    tensors["model.norm.weight"] = torch.zeros(7)
    write_model(tmp_path / "b", tensors)
    (message,) = messages(compiled(tmp_path, LINEAR))
    for part in ("model.norm.weight", "[16]", "[7]"):
        assert part in message


def test_integer_tensors_of_another_dtype_are_an_error(tmp_path: Path) -> None:
    """Integers cannot be averaged, and those of different types cannot be equal."""
    for name, dtype in (("a", torch.int64), ("b", torch.int32)):
        tensors = llama_tensors(1, 3) | {"position_ids": torch.arange(4, dtype=dtype)}
        write_model(tmp_path / name, tensors)
    (message,) = messages(compiled(tmp_path, LINEAR))
    assert "position_ids" in message
    assert "int64" in message
    assert "int32" in message


def test_every_mistake_is_found_at_once_and_in_the_order_of_the_file(tmp_path: Path) -> None:
    """A method, a parameter, a value and a model that are wrong: four problems, each with its line."""
    found = compiled(
        tmp_path,
        """\
mergeflow: 1
steps:
  one:
    merge_method: tise
    base_model: ./base
    models: [{model: ./a, parameters: {weight: 1}}]
  two:
    merge_method: ties
    base_model: ./base
    models:
      - model: ./a
        parameters: {weight: 1, densty: 0.5}
      - model: ./b
        parameters:
          weight: 1
          density: 1.5
  three:
    merge_method: linear
    models: [{model: ./nowhere, parameters: {weight: 1}}]
outputs: {one: ./1, two: ./2, three: ./3}
""",
    )
    errors = [problem for problem in found.problems if problem.severity == "error"]
    assert [_line(problem) for problem in errors] == [4, 12, 16, 19]
    for problem, part in zip(errors, ("'ties'", "'density'", "between 0 and 1", "nowhere"), strict=True):
        assert part in problem.message


def test_a_delta_cannot_be_an_output(tmp_path: Path) -> None:
    """A task vector is no model; the message says what to do with it."""
    (message,) = messages(
        compiled(tmp_path, "mergeflow: 1\nsteps: {d: {task_vector: {model: ./a, base: ./base}}}\noutputs: {d: ./out}\n")
    )
    assert "delta" in message
    assert "task_arithmetic" in message


def test_weights_and_deltas_do_not_mix_in_an_average(tmp_path: Path) -> None:
    """linear takes either, never both."""
    text = LINEAR.replace("  mean:", "  d: {task_vector: {model: ./a, base: ./base}}\n  mean:").replace(
        "./a, par", "d, par"
    )
    assert any("d is a delta" in message for message in messages(compiled(tmp_path, text)))


def _line(problem: Problem) -> int:
    assert problem.position is not None
    return problem.position.line


def test_integer_tensors_of_sources_with_one_label_are_compared(tmp_path: Path) -> None:
    """A step and a folder may have the same name; their integers are held against each other all the same."""
    for name, dtype in (("a", torch.int64), ("b", torch.int32)):
        write_model(tmp_path / name, llama_tensors(1, 3) | {"position_ids": torch.arange(4, dtype=dtype)})
    text = """
mergeflow: 1
steps:
  b: {merge_method: passthrough, models: [{model: ./a}]}
  mix: {merge_method: linear, models: [{model: b}, {model: {path: b}}], parameters: {weight: 1}}
outputs: {mix: {}}
"""
    (message,) = messages(compiled(tmp_path, text))
    assert "it is int64 in b, int32 in b" in message
