"""What comes out is what the formulas say: against float64, against the same steps run one by one, and through Python."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from three_steps import LAYERS, NAMES, RECIPE, options, three_models, weights, write_recipe
from tiny_checkpoints import read_model

import mergeflow

Array = NDArray[np.float64]

# Weights that are sums of powers of two: votes that cancel do so exactly in any format, as the rule for zero asks.
EXACT = RECIPE.replace("weight: 0.6", "weight: 0.75").replace("weight: 0.4", "weight: 0.5")


def as_float64(folder: Path) -> dict[str, Array]:
    return {name: tensor.double().numpy() for name, tensor in read_model(folder).items()}


def position(name: str) -> float:
    """How deep a tensor lies: 0 for the first layer (and outside of the layers), 1 for the last."""
    parts = name.split(".")
    return int(parts[2]) / (LAYERS - 1) if parts[1] == "layers" else 0.0


def t_of(name: str) -> float:
    """The recipe's gradients and filter."""
    values = [0.2, 0.9] if "mlp" in name else [0.1, 0.5, 1]
    return float(np.interp(position(name), np.linspace(0, 1, len(values)), values))


def trimmed(delta: Array, density: float) -> Array:
    """The largest magnitudes of a delta, of equal ones those that come first; the rest is zero."""
    flat = delta.ravel()
    keep = np.argsort(-np.abs(flat), kind="stable")[: max(1, int(density * flat.size))]
    kept = np.zeros_like(flat)
    kept[keep] = flat[keep]
    return kept.reshape(delta.shape)


def ties(base: Array, deltas: list[Array], factors: list[float], densities: list[float]) -> Array:
    """Yadav et al. 2023 with weights: trim, elect the sign of the weighted sum, average those that agree."""
    votes = np.stack([w * trimmed(d, p) for d, w, p in zip(deltas, factors, densities, strict=True)])  # (2, ...)
    elected = np.where(votes.sum(0) >= 0, 1, -1)
    agree = (votes != 0) & (np.sign(votes) == elected)
    total = np.where(agree, votes, 0).sum(0)
    share = sum(w * mask for w, mask in zip(factors, agree, strict=True))
    return base + total / np.where(share == 0, 1, share)


def slerp(start: Array, end: Array, t: float) -> Array:
    """Shoemake 1985, on whole tensors; nearly parallel ones are interpolated linearly."""
    cosine = np.sum(start * end) / (np.linalg.norm(start) * np.linalg.norm(end))
    if abs(cosine) > 0.9995:
        return (1 - t) * start + t * end
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * start + np.sin(t * angle) * end) / np.sin(angle)


def expected(models: Mapping[str, Mapping[str, Array]], name: str) -> Array:
    base, math, code = (models[key][name] for key in NAMES)
    if base.size == 0 or name == "model.position_ids":
        return base
    skills = ties(base, [math - base, code - base], [0.75, 0.5], [0.5, 0.3])
    return slerp(base, skills, t_of(name))


# A number is rounded to float32 a few times on its way, and once to the format it is stored in.
ROUNDING = {torch.float32: 3e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_three_steps_are_their_formulas(tmp_path: Path, dtype: torch.dtype) -> None:
    """Task vectors, TIES and SLERP with gradients and a filter are, to rounding, what float64 says they are."""
    three_models(tmp_path, dtype)
    report = mergeflow.run(write_recipe(tmp_path, EXACT), options=options(tmp_path))
    assert report.warnings == ()
    models = {name: as_float64(tmp_path / name) for name in NAMES}
    made = read_model(tmp_path / "out")
    assert made.keys() == models["base"].keys()
    for name, tensor in made.items():
        assert tensor.dtype == (torch.int64 if name == "model.position_ids" else dtype)
        found = tensor.double().numpy()
        np.testing.assert_allclose(found, expected(models, name), rtol=ROUNDING[dtype], atol=1e-6, err_msg=name)


STEPS = 20


def chain(start: str, names: list[str]) -> str:
    """A recipe of one slerp after the other, from `start` towards each of `names` in turn, kept in float32."""
    lines = ["mergeflow: 1", "steps:"]
    before = start
    for number, name in enumerate(names):
        step = f"step_{number}"
        lines.append(
            f"  {step}: {{merge_method: slerp, base_model: {before}, models: [{{model: {name}}}], "
            f"parameters: {{t: {round(0.2 + 0.03 * (number % 10), 2)}}}}}"
        )
        before = step
    return "\n".join([*lines, "outputs:", f"  {before}: {{dtype: float32}}", ""])


@pytest.mark.parametrize("memory", [None, 1])
def test_a_chain_is_its_steps_one_by_one(tmp_path: Path, memory: int | None) -> None:
    """Twenty slerps in one recipe give the bytes of twenty recipes with a float32 model on disk between them."""
    three_models(tmp_path, torch.bfloat16, layers=1, large=(140, 1024))
    towards = [f"./{NAMES[number % 2 + 1]}" for number in range(STEPS)]
    mergeflow.run(
        write_recipe(tmp_path, chain("./base", towards)), tmp_path / "whole", options=options(tmp_path, memory=memory)
    )

    before = "./base"
    for number, _name in enumerate(towards):
        # The step's own number decides its t: keep it, and drop the steps before.
        text = chain("./base", towards[: number + 1]).splitlines()
        single = [*text[: text.index("steps:") + 1], text[text.index("steps:") + 1 + number], *text[-2:]]
        recipe = "\n".join(single).replace(f"step_{number - 1},", f"{before},")
        mergeflow.run(
            write_recipe(tmp_path, recipe + "\n", "single.yaml"), tmp_path / f"part{number}", options=options(tmp_path)
        )
        before = f"./part{number}"
    assert weights(tmp_path / "whole") == weights(tmp_path / before)


@pytest.mark.parametrize("memory", [None, 1])
@pytest.mark.parametrize("cached", [True, False])
def test_tensors_are_what_a_run_writes(tmp_path: Path, memory: int | None, cached: bool) -> None:
    """`mergeflow.tensors` gives, in memory and in order, the tensors that `mergeflow.run` writes."""
    three_models(tmp_path, torch.bfloat16)
    recipe = write_recipe(tmp_path, RECIPE.replace("outputs:\n", "outputs:\n  skills: {path: ./skills}\n"))
    how = options(tmp_path, memory=memory, **({} if cached else {"cache": None}))
    for step, folder in (("skills", "skills"), ("final", "out")):
        found = dict(mergeflow.tensors(recipe, step, options=how))
        mergeflow.run(recipe, options=options(tmp_path))
        written = read_model(tmp_path / folder)
        assert set(found) == set(written)
        for name, tensor in found.items():
            assert tensor.dtype == (torch.int64 if name == "model.position_ids" else torch.float32), name
            assert torch.equal(tensor.to(written[name].dtype), written[name]), name


def test_tensors_need_no_state_folder(tmp_path: Path) -> None:
    """Scratch files find their folder where nothing has been remembered yet."""
    three_models(tmp_path)
    for file in tmp_path.rglob("*.safetensors"):
        os.utime(file, (2e9, 2e9))  # in the future: such a file may change unnoticed, so nothing is remembered of it
    assert len(dict(mergeflow.tensors(write_recipe(tmp_path), "final", options=options(tmp_path, memory=1)))) > 0
