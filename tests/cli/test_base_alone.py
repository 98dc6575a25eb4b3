"""A mergekit file in which nothing is merged into the base: the base, with a warning, as mergekit gives it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command_line import mergeflow, write
from safetensors.torch import load_file

METHODS = ("task_arithmetic", "ties", "dare_linear", "breadcrumbs", "della", "sce", "ram")


@pytest.mark.parametrize("method", METHODS)
def test_a_base_alone_is_the_result(workplace: Path, method: str) -> None:
    """The sum of no task vectors is nothing, whatever the method would have done with them."""
    recipe = write(f"merge_method: {method}\nbase_model: a\nmodels: [{{model: a}}]\n")
    done = mergeflow("run", recipe, "out", "--no-cache", "--quiet")
    assert done.code == 0
    assert "has nothing to add to its base, a, which is the result" in done.err
    base, made = (load_file(workplace / name / "model.safetensors") for name in ("a", "out"))
    assert all(torch.equal(base[name], made[name]) for name in base)


def test_a_slice_of_the_base_alone(workplace: Path) -> None:
    """In a stack, layers of the base stand beside merged ones."""
    recipe = write("""
        merge_method: task_arithmetic
        base_model: a
        slices:
        - sources: [{model: a, layer_range: [0, 1]}]
        - sources: [{model: a, layer_range: [1, 2]}, {model: b, layer_range: [1, 2]}]
          parameters: {weight: 1}
    """)
    done = mergeflow("run", recipe, "out", "--no-cache", "--quiet")
    assert done.code == 0
    base, other, made = (load_file(workplace / name / "model.safetensors") for name in ("a", "b", "out"))
    name = "model.layers.{}.self_attn.q_proj.weight"
    assert torch.equal(made[name.format(0)], base[name.format(0)])
    assert torch.allclose(made[name.format(1)].float(), other[name.format(1)].float(), atol=1e-2)


def test_a_recipe_must_have_something_to_merge(workplace: Path) -> None:
    """In a native recipe it is a mistake, said before anything is done."""
    recipe = write("mergeflow: 1\nsteps:\n  s: {merge_method: ties, base_model: ./a, models: [{model: ./a}]}\n")
    done = mergeflow("run", recipe, "out", "--no-cache", "--quiet")
    assert done.code == 1
    assert "ties needs at least 1 model besides its base, not 0" in done.err
    assert not (workplace / "out").exists()
