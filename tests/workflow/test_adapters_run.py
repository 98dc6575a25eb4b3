"""Recipes with adapters, from the file to the written model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import mergeflow
from mergeflow.errors import RecipeError
from mergeflow.workflow.options import Options

GOLDEN = Path(__file__).parents[1] / "golden" / "adapters"
BASE, PLAIN, DORA = GOLDEN / "bases" / "llama", GOLDEN / "plain" / "adapter", GOLDEN / "dora" / "adapter"


def run(tmp_path: Path, text: str, name: str = "out") -> dict[str, torch.Tensor]:
    recipe = tmp_path / f"{name}.yaml"
    recipe.write_text(text)
    mergeflow.run(recipe, tmp_path / name, options=Options(cache=tmp_path / "cache"))
    return load_file(tmp_path / name / "model.safetensors")


def test_a_mergekit_file_merges_a_model_with_an_adapter(tmp_path: Path) -> None:
    """`model: base+adapter` is the base with what PEFT makes of the adapter, in any method."""
    text = f"""
merge_method: linear
models:
  - {{model: {BASE}, parameters: {{weight: 0.5}}}}
  - {{model: {BASE}+{DORA}, parameters: {{weight: 0.5}}}}
dtype: float32
"""
    found, base = run(tmp_path, text), load_file(BASE / "model.safetensors")
    merged = load_file(GOLDEN / "dora" / "merged.safetensors")
    assert found.keys() == base.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, (base[name] + merged.get(name, base[name])) / 2, rtol=1e-6, atol=1e-6)


def test_the_delta_of_an_adapter_is_the_task_vector_of_the_model_with_it(tmp_path: Path) -> None:
    """Alone, with its base, and as model minus base, an adapter is one delta."""
    forms = {
        "alone": f"{{adapter: {PLAIN}}}",
        "on_base": f"{{adapter: {PLAIN}, base: {BASE}}}",
        "subtracted": f"{{model: {BASE}+{PLAIN}, base: {BASE}}}",
    }
    merged = {**load_file(BASE / "model.safetensors"), **load_file(GOLDEN / "plain" / "merged.safetensors")}
    for name, form in forms.items():
        text = f"""
mergeflow: 1
steps:
  skill: {{task_vector: {form}}}
  final:
    merge_method: task_arithmetic
    base_model: {BASE}
    models: [{{model: skill, parameters: {{weight: 1.0}}}}]
"""
        for tensor_name, tensor in run(tmp_path, text, name).items():
            torch.testing.assert_close(tensor, merged[tensor_name], rtol=1e-5, atol=1e-5)


def test_another_alpha_changes_only_the_tensors_of_the_adapter(tmp_path: Path) -> None:
    """The keys of all other tensors stay, and with them what was computed."""
    adapter = shutil.copytree(PLAIN, tmp_path / "adapter")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"merge_method: passthrough\nmodels: [{{model: {BASE}+{adapter}}}]\ndtype: float32\n")
    options = Options(cache=tmp_path / "cache")
    before = mergeflow.run(recipe, tmp_path / "out", options=options).keys
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 32}))
    after = mergeflow.run(recipe, tmp_path / "out", options=options).keys
    changed = {name for name, key in after.items() if key != before[name]}
    names = load_file(GOLDEN / "plain" / "merged.safetensors").keys()
    assert len(changed) == len(names)
    assert all(any(name in key for key in changed) for name in names)


def test_an_adapter_that_does_not_fit_is_an_error_of_the_recipe(tmp_path: Path) -> None:
    """Before a weight is read, with the place in the recipe."""
    recipe = tmp_path / "r.yaml"
    gpt2 = GOLDEN / "bases" / "gpt2"
    recipe.write_text(f"merge_method: passthrough\nmodels: [{{model: {gpt2}+{PLAIN}}}]\n")
    with pytest.raises(RecipeError, match=r"r.yaml:2:.*the adapter changes model.layers.0"):
        mergeflow.run(recipe, tmp_path / "out", options=Options(cache=tmp_path / "cache"))
