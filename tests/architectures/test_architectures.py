"""Every architecture merges by the names of its tensors alone, and what comes out loads in transformers and runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from loading import load, run
from plain_merges import MERGES, Array, packed
from safetensors.numpy import load_file, save_file
from tiny_models import ARCHITECTURES, Made, save

import mergeflow
from mergeflow.models.checkpoint import open_checkpoint
from mergeflow.models.layout import infer_layout

NAMES = sorted(ARCHITECTURES)


def merge(folder: Path, out: Path, configuration: Mapping[str, Any]) -> mergeflow.api.RunReport:
    """Run a mergekit configuration over the models `a` and `b` of a folder."""
    text = yaml.safe_dump(dict(configuration))
    for model in "ab":
        text = text.replace(f"model: {model}\n", f"model: {folder / model}\n")
    recipe = out.with_suffix(".yaml")
    recipe.write_text(text)
    return mergeflow.run(recipe, out)


def tensors(folder: Path) -> dict[str, Array]:
    """The tensors of a model as we name them (experts packed), as float64."""
    return packed({name: array.astype(np.float64) for name, array in load_file(folder / "model.safetensors").items()})


def counted(config: Mapping[str, Any], key: str) -> int:
    """What stands at a dotted place of a configuration."""
    for part in key.split("."):
        config = config[part]
    assert isinstance(config, int)
    return config


@pytest.mark.parametrize("name", NAMES)
def test_stacks_show_in_the_names(name: str, made: Made) -> None:
    """Every stack that the configuration counts is found, with as many layers, and no other."""
    row, folder = ARCHITECTURES[name], made(name) / "a"
    config = json.loads((folder / "config.json").read_text())
    counts = {stack: counted(config, key) for stack, key in row.stacks.items()}
    assert dict(infer_layout(open_checkpoint(folder, name).tensors).stacks) == counts


@pytest.mark.parametrize(("name", "number"), [(name, at % 3) for at, name in enumerate(NAMES)])
def test_two_models_merge(name: str, number: int, made: Made, tmp_path: Path) -> None:
    """Every tensor is what the formula says, and transformers loads and runs the model."""
    configuration, formula = MERGES[number]
    row, folder = ARCHITECTURES[name], made(name)
    merge(folder, tmp_path / "out", configuration)
    a, b, merged = (tensors(path) for path in (folder / "a", folder / "b", tmp_path / "out"))
    assert merged.keys() == a.keys()
    for tensor in merged:
        expected = formula(a[tensor], b[tensor])
        np.testing.assert_allclose(merged[tensor], expected, rtol=2e-5, atol=1e-6, err_msg=tensor)
    model = load(row, tmp_path / "out")
    assert not np.allclose(run(row, model), run(row, load(row, folder / "a")))


def slices(depth: int) -> list[dict[str, Any]]:
    """The first two layers of `a`, then all but the first of `b`."""
    return [
        {"sources": [{"model": "a", "layer_range": [0, 2]}]},
        {"sources": [{"model": "b", "layer_range": [1, depth]}]},
    ]


@pytest.mark.parametrize("name", NAMES)
def test_layers_stack(name: str, made: Made, tmp_path: Path) -> None:
    """Layers of two models, one behind the other, in every stack there is: the configuration follows, and it runs."""
    row, folder = ARCHITECTURES[name], made(name)
    before = json.loads((folder / "a" / "config.json").read_text())
    depths = {stack: counted(before, key) for stack, key in row.stacks.items()}
    configuration: dict[str, Any] = {"merge_method": "passthrough"}
    if len(depths) == 1:
        configuration["slices"] = slices(*depths.values())
    else:
        configuration["modules"] = {stack: {"slices": slices(depth)} for stack, depth in depths.items()}
    merge(folder, tmp_path / "out", configuration)

    a, b, stacked = (tensors(path) for path in (folder / "a", folder / "b", tmp_path / "out"))
    layout = infer_layout(a)
    for tensor, array in stacked.items():
        place = layout.place(tensor)
        if place.layer is None or place.stack is None:
            assert any(np.array_equal(array, model[tensor]) for model in (a, b)), tensor
        else:
            source, layer = (a, place.layer) if place.layer < 2 else (b, place.layer - 1)
            old = tensor.replace(f"{place.stack}.{place.layer}.", f"{place.stack}.{layer}.", 1)
            np.testing.assert_array_equal(array, source[old], err_msg=tensor)
    after = json.loads((tmp_path / "out" / "config.json").read_text())
    for stack, key in row.stacks.items():
        assert counted(after, key) == depths[stack] + 1
    run(row, load(row, tmp_path / "out"))


@pytest.mark.parametrize("packed_first", [True, False])
def test_layouts_of_experts_mix(packed_first: bool, made: Made, tmp_path: Path) -> None:
    """One input with a tensor for each expert, the other with packed ones: the same as two of one layout."""
    folder = made("qwen3_moe")
    mixed = "a" if packed_first else "b"
    for model in "ab":
        (tmp_path / model).mkdir()
        (tmp_path / model / "config.json").write_bytes((folder / model / "config.json").read_bytes())
        plain = load_file(folder / model / "model.safetensors")
        arrays = packed(plain) if model == mixed else plain
        save_file(
            {name: array.astype(np.float32) for name, array in arrays.items()}, tmp_path / model / "model.safetensors"
        )
    configuration, formula = MERGES[0]
    merge(tmp_path, tmp_path / "out", configuration)
    a, b, merged = (tensors(path) for path in (folder / "a", folder / "b", tmp_path / "out"))
    assert merged.keys() == a.keys()
    for tensor in merged:
        np.testing.assert_allclose(merged[tensor], formula(a[tensor], b[tensor]), rtol=2e-5, atol=1e-6, err_msg=tensor)
    run(ARCHITECTURES["qwen3_moe"], load(ARCHITECTURES["qwen3_moe"], tmp_path / "out"))


def test_tied_weights_stay_tied(made: Made, tmp_path: Path) -> None:
    """Two models whose head is their embedding: no head is written, and the configuration says tied."""
    folder = made("qwen2")
    merge(folder, tmp_path / "out", MERGES[1][0])
    assert "lm_head.weight" not in tensors(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True


def test_a_tied_model_and_one_with_a_head_make_one_with_a_head(made: Made, tmp_path: Path) -> None:
    """The tied one's head is its embedding; the output's is a matrix of its own, and the configuration says so."""
    row = ARCHITECTURES["qwen2"]
    (tmp_path / "a").symlink_to(made("qwen2") / "a")
    save(row, tmp_path / "b", 5, tie_word_embeddings=False)
    configuration, formula = MERGES[0]
    merge(tmp_path, tmp_path / "out", configuration)
    a, b, merged = (tensors(tmp_path / model) for model in ("a", "b", "out"))
    expected = formula(a["model.embed_tokens.weight"], b["lm_head.weight"])
    np.testing.assert_allclose(merged["lm_head.weight"], expected, rtol=2e-5, atol=1e-6)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    model = load(row, tmp_path / "out")
    np.testing.assert_allclose(model.lm_head.weight.detach().numpy(), expected, rtol=2e-5, atol=1e-6)


def test_what_a_configuration_cannot_say_is_a_warning(made: Made, tmp_path: Path) -> None:
    """DeepSeek's dense layer, stacked behind one with experts: the report says that the output may not load."""
    twice = [{"sources": [{"model": "a", "layer_range": [0, 2]}]}] * 2
    report = merge(made("deepseek_v3"), tmp_path / "out", {"merge_method": "passthrough", "slices": twice})
    assert any("first_k_dense_replace is 1" in warning for warning in report.warnings)
