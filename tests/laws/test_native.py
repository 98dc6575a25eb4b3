"""The native library gives the bytes of the torch kernels: for every method it has, in every format, wherever it cuts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_checkpoints import read_model, write_model
from torch import Tensor

import mergeflow
from mergeflow.execute import native as execute_native
from mergeflow.execute.engine import needs_torch
from mergeflow.methods.native import library as native
from mergeflow.methods.table import METHODS
from mergeflow.workflow.planning import plan_recipe

pytestmark = pytest.mark.skipif(native.library() is None, reason="the native library could not be built here")

# What makes each method do all it can, beside the weights.
PARAMETERS: dict[str, dict[str, Any]] = {
    "linear": {},
    "slerp": {"t": 0.4},
    "nuslerp": {},
    "multislerp": {},
    "karcher": {},
    "model_stock": {},
    "geometric_median": {},
    "task_arithmetic": {"lambda": 0.9},
    "ties": {"density": 0.4},
    "dare_ties": {"density": 0.6},
    "dare_linear": {"density": 0.6, "rescale": False},
    "breadcrumbs": {"density": 0.5, "gamma": 0.05},
    "breadcrumbs_ties": {"density": 0.5, "gamma": 0.05, "rescale": True},
    "della": {"density": 0.5, "epsilon": 0.3},
    "della_linear": {"density": 0.5, "epsilon": 0.3, "rescale": False},
    "sce": {"select_topk": 0.3},
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "ties_rescaled": ("ties", {"density": 0.4, "rescale": True, "normalize": False, "lambda": 0.7}),
    "sce_all": ("sce", {}),
    **{name: (name, parameters) for name, parameters in PARAMETERS.items()},
}
COUNTS = {"slerp": 1, "nuslerp": 2}


def tensors(seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Longer than two blocks, a matrix of many equal entries, a vector, numbers of every kind."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    return {
        "model.embed_tokens.weight": drawn(611, 701),
        "model.layers.0.coarse.weight": (drawn(63, 1025) * 2).round(),
        "model.layers.0.norm.weight": drawn(63),
        "model.layers.0.scalar": drawn(1)[0],
        "model.layers.0.small": drawn(5, 3) * 1e-6,
        "model.layers.0.large": drawn(5, 3) * 1e3,
        "model.layers.0.zeros": torch.zeros(7, 1, dtype=dtype),
        "model.layers.0.empty": torch.zeros(0, 4, dtype=dtype),
    }


def recipe(folder: Path) -> mergeflow.Recipe:
    """A step for each variant, and an output for each step."""
    steps: dict[str, Any] = {}
    for step, (name, parameters) in VARIANTS.items():
        method, models = METHODS[name], ("a", "b", "c")[: COUNTS.get(name, 3)]
        weighted = method.parameter("weight") is not None
        weights = (
            {"a": 0.5, "b": -0.3, "c": 1.0} if name in ("linear", "ties", "dare_ties") else dict.fromkeys("abc", 0.5)
        )
        listed = [{"model": m, "parameters": {"weight": weights[m]} if weighted else {}} for m in models]
        base = {"base_model": "base"} if method.base == "required" else {}
        steps[step] = {"merge_method": name, "models": listed, "parameters": parameters, **base}
    names = {name: str(folder / name) for name in ("base", "a", "b", "c")}
    document = {
        "mergeflow": 1,
        "seed": 3,
        "models": names,
        "steps": steps,
        "outputs": {step: {"path": str(folder / "out" / step)} for step in steps},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return mergeflow.load(path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_native_library_gives_torchs_bytes(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every method, on tensors of several blocks, parts, rows and sizes: each file is the same to the last bit."""
    for seed, name in enumerate(("base", "a", "b", "c")):
        write_model(tmp_path / name, tensors(seed, dtype))
    monkeypatch.setattr(execute_native, "BLOCK_ELEMENTS", 1 << 17)
    monkeypatch.setattr(execute_native, "LONG_BLOCK_ELEMENTS", 1 << 18)
    monkeypatch.setattr(execute_native, "PART_ELEMENTS", 1 << 16)
    options = mergeflow.Options(cache=None)
    mergeflow.run(recipe(tmp_path), options=options)
    natively = {step: read_model(tmp_path / "out" / step) for step in VARIANTS}

    for step in VARIANTS:
        (tmp_path / "out" / step).rename(tmp_path / step)
    monkeypatch.setattr(native, "library", lambda: None)
    mergeflow.run(recipe(tmp_path), options=options)
    for step, made in natively.items():
        with_torch = read_model(tmp_path / "out" / step)
        for name, tensor in with_torch.items():
            same = torch.equal(made[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
            assert same, f"{step}: {name}"


def test_the_library_computes_these_methods(tmp_path: Path) -> None:
    """The law above compares two things: none of these programs needs torch on a CPU, and each does on another device."""
    for seed, name in enumerate(("base", "a", "b", "c")):
        write_model(tmp_path / name, tensors(seed, torch.bfloat16))
    plan = plan_recipe(recipe(tmp_path), None, mergeflow.Options(cache=None), lambda event: None)
    programs = [program for task in plan.tasks for program in task.programs]
    assert programs
    assert not any(needs_torch(program, "cpu") for program in programs)
    assert all(needs_torch(program, "cuda") for program in programs)
