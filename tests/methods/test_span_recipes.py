"""The methods that a Gram matrix serves, in recipes: gradients and filters, steps on steps, types, and what is reused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import reference_span as reference
from reference_methods import Array
from three_steps import LAYERS, NAMES, options, three_models, write_recipe
from tiny_checkpoints import read_model

import mergeflow
from mergeflow.errors import MergeflowError

HEAD = """\
mergeflow: 1
models: {base: ./base, math: ./math, code: ./code}
steps:
  math_skill: {task_vector: {model: math, base: base}}
  code_skill: {task_vector: {model: code, base: base}}
"""
SOURCES = ("base", "math", "code")


def position(name: str) -> float:
    """How deep a tensor lies: 0 for the first layer (and outside of the layers), 1 for the last."""
    parts = name.split(".")
    return int(parts[2]) / (LAYERS - 1) if parts[1] == "layers" else 0.0


def rising(name: str) -> float:
    """The recipes' weight of the second model: a gradient from 0.2 to 1, and 2 for the MLP."""
    return 2.0 if "mlp" in name else 0.2 + 0.8 * position(name)


RISING = "{weight: [{filter: mlp, value: 2}, {value: [0.2, 1]}]}"

Formula = Callable[[Mapping[str, Array], str], Array]

# step -> its body, and the formula over the three models for a tensor of some name.
STEPS: dict[str, tuple[str, Formula]] = {
    "arc": (
        "{merge_method: nuslerp, models: [{model: math, parameters: {weight: 0.5}}, "
        f"{{model: code, parameters: {RISING}}}]}}",
        lambda m, name: reference.nuslerp(m["math"], m["code"], (0.5, rising(name))),
    ),
    "arc_on_base": (
        "{merge_method: nuslerp, base_model: base, models: [{model: math_skill, parameters: {weight: 0.5}}, "
        f"{{model: code, parameters: {RISING}}}]}}",
        lambda m, name: reference.nuslerp(m["math"], m["code"], (0.5, rising(name)), m["base"]),
    ),
    "sphere": (
        "{merge_method: multislerp, models: [{model: base}, {model: math}, "
        f"{{model: code, parameters: {RISING}}}], parameters: {{weight: 0.5}}}}",
        lambda m, name: reference.multislerp([m[key] for key in SOURCES], (0.5, 0.5, rising(name))),
    ),
    "sphere_on_base": (
        "{merge_method: multislerp, base_model: base, models: [{model: math_skill}, {model: code_skill}], "
        "parameters: {weight: 0.5, normalize_weights: [true, false]}}",
        lambda m, name: reference.multislerp(
            [m["math"], m["code"]], (0.5, 0.5), m["base"], normalize=position(name) < 1.0
        ),
    ),
    "mean": (
        "{merge_method: karcher, models: [{model: math}, {model: code}], base_model: base, "
        "parameters: {max_iter: [1, 3, 5]}}",
        lambda m, name: reference.karcher([m["math"], m["code"], m["base"]], int(1 + 4 * position(name))),
    ),
    "stock": (
        "{merge_method: model_stock, base_model: base, models: [{model: math_skill}, {model: code}]}",
        lambda m, name: reference.model_stock(m["base"], [m["math"], m["code"]]),
    ),
    "median": (
        "{merge_method: geometric_median, models: [{model: math}, {model: code}, {model: base, parameters: "
        "{weight: [0.5, 1]}}], parameters: {max_iter: 30, tol: 0}}",
        lambda m, name: reference.geometric_median(
            [m["math"], m["code"], m["base"]], (1.0, 1.0, 0.5 + 0.5 * position(name)), 30
        ),
    ),
    "sum": (
        "{merge_method: arithmetic, models: [{model: math, parameters: {weight: 1}}, {model: code_skill, "
        "parameters: {weight: [-1, 0.5]}}]}",
        lambda m, name: np.asarray(m["math"] + (1.5 * position(name) - 1.0) * (m["code"] - m["base"])),
    ),
    "skills": (
        "{merge_method: arithmetic, models: [{model: math_skill, parameters: {weight: 0.5}}, {model: code_skill, "
        "parameters: {weight: -0.25}}]}",
        lambda m, name: np.asarray(0.5 * (m["math"] - m["base"]) - 0.25 * (m["code"] - m["base"])),
    ),
}


def as_float64(folder: Path) -> dict[str, Array]:
    return {name: tensor.double().numpy() for name, tensor in read_model(folder).items()}


def test_every_tensor_has_its_own_parameters(tmp_path: Path) -> None:
    """Each method's step gives, for each tensor, the formula with that tensor's parameters; deltas make deltas."""
    three_models(tmp_path, large=(140, 512))
    text = HEAD + "".join(f"  {name}: {body}\n" for name, (body, _) in STEPS.items())
    text += "  applied: {merge_method: arithmetic, models: [{model: base}, {model: skills}], parameters: {weight: 1}}\n"
    outputs = [name for name in STEPS if name != "skills"] + ["applied"]
    text += "outputs:\n" + "".join(f"  {name}: {{path: ./out/{name}}}\n" for name in outputs)
    report = mergeflow.run(write_recipe(tmp_path, text), options=options(tmp_path))
    assert not report.warnings

    models = {name: as_float64(tmp_path / name) for name in NAMES}
    for step in outputs:
        for name, found in as_float64(tmp_path / "out" / step).items():
            tensors = {key: models[key][name] for key in NAMES}
            wanted = tensors["base"]
            if found.size and name != "model.position_ids":
                wanted = (
                    wanted + STEPS["skills"][1](tensors, name) if step == "applied" else STEPS[step][1](tensors, name)
                )
            np.testing.assert_allclose(found, wanted, rtol=5e-6, atol=5e-6, err_msg=f"{step}: {name}")


def test_a_changed_weight_reads_the_gram_matrix_from_the_cache(tmp_path: Path) -> None:
    """A second weight needs one pass instead of two: half of the bytes, and the same result as a run from nothing."""
    three_models(tmp_path, large=(64, 512), layers=1)
    text = HEAD + f"  arc: {STEPS['arc_on_base'][0]}\noutputs: {{arc: {{path: ./out}}}}\n"
    mergeflow.run(write_recipe(tmp_path, text), options=options(tmp_path))
    changed = write_recipe(tmp_path, text.replace("weight: 0.5", "weight: 0.75"))

    def statistics(**wishes: object) -> tuple[int, int]:
        found = mergeflow.plan(changed, options=options(tmp_path, **wishes))
        programs = [program for task in found.tasks for program in task.programs]
        kinds = [instruction.kind for program in programs for instruction in program.instructions]
        return kinds.count("statistic"), kinds.count("record")

    to_compute, known = statistics()
    assert (to_compute, known > 0) == (0, True)
    assert statistics(cache=None) == (known, 0)

    mergeflow.run(changed, options=options(tmp_path))
    again = read_model(tmp_path / "out")
    mergeflow.run(changed, tmp_path / "fresh", options=options(tmp_path, cache=None))
    fresh = read_model(tmp_path / "fresh")
    assert all(again[name].equal(fresh[name]) for name in fresh)


def problems(tmp_path: Path, steps: str) -> str:
    """What validating says of a recipe with these steps."""
    three_models(tmp_path, large=(4, 8), layers=1)
    with pytest.raises(MergeflowError) as found:
        mergeflow.plan(write_recipe(tmp_path, HEAD + steps), tmp_path / "out", options=options(tmp_path))
    return str(found.value)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (
            "merge_method: multislerp, models: [{model: math}, {model: code}], parameters: {weight: [{filter: norm, "
            "value: 0}, {value: 1}]}",
            "the weights (0, 0) sum to zero, so they cannot be normalized; set normalize_weights: false "
            "(tensor model.layers.0.input_layernorm.weight and 1 more)",
        ),
        (
            "merge_method: geometric_median, models: [{model: math}, {model: code}], parameters: {weight: 0}",
            "every weight is 0: the median needs a model of positive weight",
        ),
        (
            "merge_method: geometric_median, models: [{model: math}, {model: code}], parameters: {weight: -1}",
            "weight must be at least 0, not -1",
        ),
        (
            "merge_method: arithmetic, models: [{model: math}, {model: code}], parameters: {weight: [{filter: embed, "
            "value: 0.25}, {value: 0.5}]}",
            "the weights of the inputs that are models (0.25, 0.25) sum to 0.5, and must sum to 1; for an average, use "
            "linear (tensor model.embed_tokens.weight)",
        ),
        ("merge_method: model_stock, base_model: base, models: [{model: math}]", "at least 2 models besides its base"),
        (
            "merge_method: nuslerp, models: [{model: math}, {model: code_skill}], parameters: {weight: 1}",
            "nuslerp cannot mix weights and deltas",
        ),
        (
            "merge_method: nuslerp, base_model: math_skill, models: [{model: math}, {model: code_skill}], parameters: "
            "{weight: 1}",
            "math_skill is a delta; the base of nuslerp must be weights",
        ),
        (
            "merge_method: arithmetic, models: [{model: math_skill}, {model: code_skill}], parameters: {weight: 1}",
            "final is a delta, not a model",
        ),
    ],
)
def test_what_cannot_be_merged_is_said_before_anything_is_read(tmp_path: Path, step: str, words: str) -> None:
    """Weights that sum to zero, or to no model, and inputs of the wrong type, with the tensor or the field they are in."""
    assert words in problems(tmp_path, f"  final: {{{step}}}\noutputs: {{final: ./out}}\n")
