"""Merging in memory gives the bytes of merging files: for every method there is, in every format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_checkpoints import read_model, write_model
from torch import Tensor

import mergeflow
from mergeflow.methods.schema import REQUIRED, Method
from mergeflow.methods.table import METHODS

NAMES = ("base", "a", "b", "c")
TAKES_WEIGHTS = [method for method in METHODS.values() if "weights" in method.takes]


def tensors(seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """A matrix longer than a block, rows, a vector, a number, and a counter that is no number to merge."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    return {
        "model.embed_tokens.weight": drawn(300, 257),
        "model.layers.0.self_attn.q_proj.weight": drawn(16, 16),
        "model.layers.0.input_layernorm.weight": drawn(16),
        "model.layers.1.self_attn.q_proj.weight": drawn(16, 16),
        "model.layers.1.input_layernorm.weight": drawn(16),
        "model.logit_scale": drawn(1)[0],
        "model.position_ids": torch.arange(7),
    }


def models_of(method: Method) -> list[str]:
    """As many models as a method takes, three where it takes any number."""
    return list(NAMES[1:][: method.maximum or 3])


def parameters_of(method: Method) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """A value for each required parameter: a gradient for all, and for each model its share of one."""
    required = [parameter for parameter in method.parameters if parameter.default is REQUIRED]
    shared = {parameter.name: [0.3, 0.6] for parameter in required if parameter.scope == "shared"}
    names = [parameter.name for parameter in required if parameter.scope != "shared"]
    shares = {1: [0.7], 2: [0.4, 0.6], 3: [0.2, 0.3, 0.5]}[len(models_of(method))]
    own = {model: dict.fromkeys(names, share) for model, share in zip(models_of(method), shares, strict=True)}
    return shared, own


def step_of(method: Method) -> dict[str, Any]:
    """A recipe's step that says the same."""
    shared, own = parameters_of(method)
    models = [{"model": model, "parameters": values} for model, values in own.items()]
    base = {"base_model": "base"} if method.base != "ignored" else {}
    return {"merge_method": method.name, "models": models, "parameters": shared, **base}


def run_files(folder: Path, models: Mapping[str, Mapping[str, Tensor]]) -> Path:
    """Save the models, and merge them with every method that gives weights, in one run."""
    for name, state in models.items():
        write_model(folder / name, dict(state))
    steps = {method.name: step_of(method) for method in TAKES_WEIGHTS}
    outputs = {method.name: {"path": f"./out/{method.name}"} for method in TAKES_WEIGHTS if method.gives != "delta"}
    recipe = {
        "mergeflow": 1,
        "seed": 5,
        "models": {name: f"./{name}" for name in models},
        "steps": steps,
        "outputs": outputs,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    mergeflow.run(folder / "recipe.yaml")
    return folder


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float64], ids=str)
def merged(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, dict[str, Tensor]], Path]:
    """Models in memory, and the folder in which they were merged as files."""
    models = {name: tensors(seed, request.param) for seed, name in enumerate(NAMES)}
    # One model of another format: what is stored is the wider of both.
    models["c"] = {name: t.float() if t.dtype == torch.bfloat16 else t for name, t in models["c"].items()}
    folder = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MERGEFLOW_CACHE", str(folder / "cache"))
        patch.setenv("MERGEFLOW_HOME", str(folder / "home"))
        return models, run_files(folder, models)


@pytest.mark.parametrize("method", TAKES_WEIGHTS, ids=lambda method: method.name)
def test_state_dicts_merge_to_the_bytes_of_files(
    method: Method, merged: tuple[dict[str, dict[str, Tensor]], Path]
) -> None:
    """Names, formats and every byte are those of the run on the same tensors, and the inputs are as they were."""
    models, folder = merged
    before = {name: {key: tensor.clone() for key, tensor in state.items()} for name, state in models.items()}
    shared, own = parameters_of(method)
    made = mergeflow.merge_state_dicts(
        {name: models[name] for name in own},
        method.name,
        base=models["base"] if method.base != "ignored" else None,
        parameters=shared,
        model_parameters=own,
        seed=5,
    )
    if method.gives == "delta":
        expected = dict(mergeflow.tensors(folder / "recipe.yaml", method.name))
    else:
        expected = read_model(folder / "out" / method.name)
    assert list(made) == list(models["a"])
    assert made.keys() == expected.keys()
    for name, tensor in made.items():
        assert tensor.dtype == expected[name].dtype, name
        assert same_bytes(tensor, expected[name]), name
    assert all(same_bytes(models[m][name], tensor) for m, state in before.items() for name, tensor in state.items())


@pytest.mark.parametrize("method", TAKES_WEIGHTS, ids=lambda method: method.name)
def test_a_tensor_merges_to_the_bytes_of_its_model(method: Method) -> None:
    """`merge_tensors` is `merge_state_dicts` of one tensor: a list has a value for each."""
    models = {
        name: {"w": tensors(seed, torch.bfloat16)["model.embed_tokens.weight"][:40]} for seed, name in enumerate(NAMES)
    }
    shared, own = parameters_of(method)
    shared = dict.fromkeys(shared, 0.3)
    base = models["base"] if method.base != "ignored" else None
    named = {name: models[name] for name in own}
    expected = mergeflow.merge_state_dicts(named, method.name, base=base, parameters=shared, model_parameters=own)
    lists = {parameter: [values[parameter] for values in own.values()] for parameter in next(iter(own.values()))}
    made = mergeflow.merge_tensors(
        [state["w"] for state in named.values()],
        method.name,
        base=None if base is None else base["w"],
        parameters={**shared, **lists},
    )
    assert same_bytes(made, expected["w"])


def same_bytes(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and torch.equal(
        left.reshape(-1).view(torch.uint8), right.reshape(-1).view(torch.uint8)
    )
