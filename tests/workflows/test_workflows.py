"""The recipes in workflows/ run as they stand, on models of their names, and give what their formulas say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).parents[2]
WORKFLOWS = ROOT / "workflows"
# What the installed command `mergeflow` does, of this checkout even where another one is installed.
MERGEFLOW = (sys.executable, "-c", "from mergeflow.cli.main import main; main()")
LAYERS = 3
HIDDEN = 16

Array = NDArray[np.float64]
Weights = Mapping[str, Array]


def shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of a tiny Llama."""
    layer = {
        "input_layernorm.weight": (HIDDEN,),
        "mlp.down_proj.weight": (HIDDEN, 24),
        "mlp.up_proj.weight": (24, HIDDEN),
        "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
    }
    named = {f"model.layers.{i}.{name}": shape for i in range(LAYERS) for name, shape in layer.items()}
    return {"model.embed_tokens.weight": (32, HIDDEN), **named, "model.norm.weight": (HIDDEN,)}


def make_models(folder: Path, names: Sequence[str]) -> dict[str, Weights]:
    """One checkpoint for each name: the first at random, the others some way from it. What they hold.

    The way is long enough for slerp to be spherical: fine-tunes lie so close that it is linear to within rounding.
    """
    made: dict[str, Weights] = {}
    for seed, name in enumerate(names):
        random = np.random.default_rng(seed)
        spread = 0.5 if made else 1.0
        drawn = {key: spread * random.standard_normal(shape) for key, shape in shapes().items()}
        origin = made.get(names[0], {key: np.zeros(shape) for key, shape in shapes().items()})
        stored = {key: (origin[key] + drawn[key]).astype(np.float32) for key in drawn}
        made[name] = {key: value.astype(np.float64) for key, value in stored.items()}
        write_model(folder / name, stored)
    return made


def write_model(folder: Path, stored: dict[str, NDArray[np.float32]]) -> None:
    folder.mkdir(parents=True)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": LAYERS}
    (folder / "config.json").write_text(json.dumps(config))


def run(recipe: Path, *arguments: str) -> dict[str, NDArray[np.generic]]:
    """Run a recipe from the command line, as its comments say, and read what it wrote. Returns its tensors."""
    return load_file(make(recipe, *arguments) / "model.safetensors")


def make(recipe: Path, *arguments: str) -> Path:
    """Run a recipe from the command line. Returns the folder it wrote."""
    out = recipe.parent / "made"
    command = [*MERGEFLOW, "run", str(recipe), str(out), "--quiet", "--no-cache", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MERGEFLOW_HOME": str(recipe.parent / "home")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=recipe.parent, env=environment)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def workflows(tmp_path: Path) -> Path:
    """A copy of the recipes, with room for models beside them."""
    folder = tmp_path / "workflows"
    folder.mkdir()
    for recipe in WORKFLOWS.glob("*.yaml"):
        shutil.copy(recipe, folder)
    return folder


def depth(name: str) -> float | None:
    """How deep a tensor lies: 0 for the first layer, 1 for the last; None before and after the layers."""
    parts = name.split(".")
    return int(parts[2]) / (LAYERS - 1) if parts[1] == "layers" else None


def gradient(values: Sequence[float], name: str) -> float:
    """A gradient's value for a tensor: spread evenly over the layers; its first one outside of them."""
    points = np.linspace(0, 1, len(values))
    return float(np.interp(depth(name) or 0, points, values))


def slerp(start: Array, end: Array, t: float) -> Array:
    """Shoemake 1985, on whole tensors; nearly parallel ones are interpolated linearly."""
    cosine = np.sum(start * end) / (np.linalg.norm(start) * np.linalg.norm(end))
    if abs(cosine) > 0.9995:
        return (1 - t) * start + t * end
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * start + np.sin(t * angle) * end) / np.sin(angle)


def trimmed(delta: Array, density: float) -> Array:
    """The `density` of a delta that is largest in magnitude; the rest is zero."""
    keep = np.argsort(-np.abs(delta), axis=None, kind="stable")[: int(density * delta.size)]
    kept = np.zeros(delta.size)
    kept[keep] = delta.ravel()[keep]
    return kept.reshape(delta.shape)


def ties(base: Array, deltas: Sequence[Array], density: float) -> Array:
    """Yadav et al. 2023, all weights 1: trim, elect the sign of the larger sum, average those that agree."""
    stacked = np.stack([trimmed(delta, density) for delta in deltas])  # (k, ...)
    agree = stacked * np.where(stacked.sum(0) >= 0, 1, -1) > 0
    return base + np.where(agree, stacked, 0).sum(0) / np.maximum(agree.sum(0), 1)


def test_soup_is_the_weighted_average_rounded_once(workflows: Path) -> None:
    """soup.yaml: a quarter, a quarter and a half, within half a unit in the last place of bfloat16."""
    models = make_models(workflows / "models", ["first", "second", "third"])
    made = run(workflows / "soup.yaml")
    assert set(made) == set(shapes())
    for name, value in made.items():
        expected = (models["first"][name] + models["second"][name] + 2 * models["third"][name]) / 4
        assert value.dtype == ml_dtypes.bfloat16
        # bfloat16 keeps eight bits: half a unit in the last place is at most one part in 256.
        np.testing.assert_allclose(value.astype(np.float64), expected, rtol=2**-8, atol=1e-7)


def test_chain_is_six_spherical_steps_one_after_the_other(workflows: Path) -> None:
    """chain.yaml: each step's gradient and filters reach the tensors they name, in float32 to the end."""
    names = ["original", "writer", "coder", "teacher"]
    models = make_models(workflows / "models", names)
    made = run(workflows / "chain.yaml")
    for name, value in made.items():
        original, writer, coder, teacher = (models[key][name] for key in names)
        attention, mlp = "self_attn" in name, "mlp" in name
        first = gradient([0, 0.5, 1], name) if attention else gradient([1, 0.5, 0], name) if mlp else 0.5
        expected = slerp(original, writer, first)
        expected = slerp(expected, coder, gradient([0.2, 0.6], name) if attention else 0.25)
        expected = slerp(expected, teacher, 0.25)
        expected = slerp(expected, writer, gradient([0.1, 0.3], name))
        expected = slerp(expected, coder, 0 if "norm" in name else gradient([0.3, 0.1], name))
        expected = slerp(expected, original, 0.1)
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, expected, rtol=2e-5, atol=1e-6)


def test_two_skills_adds_one_and_takes_half_of_the_other_away(workflows: Path) -> None:
    """two-skills.yaml: original + (coder - original) - 0.5 (rude - original)."""
    models = make_models(workflows / "models", ["original", "coder", "rude"])
    for name, value in run(workflows / "two-skills.yaml").items():
        original, coder, rude = (models[key][name] for key in ("original", "coder", "rude"))
        np.testing.assert_allclose(value, coder - 0.5 * (rude - original), rtol=1e-5, atol=1e-6)


def test_two_skills_forgets_more_when_told_so(workflows: Path) -> None:
    """`--set forget=-0.8`, as the recipe's comment says, takes more of it away."""
    models = make_models(workflows / "models", ["original", "coder", "rude"])
    for name, value in run(workflows / "two-skills.yaml", "--set", "forget=-0.8").items():
        original, coder, rude = (models[key][name] for key in ("original", "coder", "rude"))
        np.testing.assert_allclose(value, coder - 0.8 * (rude - original), rtol=1e-5, atol=1e-6)


def test_the_demo_is_ties_of_two_task_vectors_and_a_slerp_with_the_original(workflows: Path) -> None:
    """demo.yaml: both deltas trimmed to half, their agreeing parts averaged, the result nine tenths of the way."""
    models = make_models(workflows / "models", ["original", "docs", "languages"])
    for name, value in run(workflows / "demo.yaml").items():
        original, docs, languages = (models[key][name] for key in ("original", "docs", "languages"))
        skills = ties(original, [docs - original, languages - original], density=0.5)
        np.testing.assert_allclose(value, slerp(original, skills, 0.9), rtol=2e-5, atol=1e-6)


def test_the_sweep_makes_every_combination(workflows: Path) -> None:
    """sweep.yaml: three densities and two t are six models, each as if its values had been given alone."""
    make_models(workflows / "models", ["original", "writer", "coder"])
    made = make(workflows / "sweep.yaml").rename(workflows / "swept")
    assert sorted(folder.name for folder in made.iterdir()) == [
        f"density={density},t={t}" for density in (0.3, 0.5, 0.7) for t in (0.4, 0.8)
    ]
    alone = run(workflows / "sweep.yaml", "--set", "density=0.5", "--set", "t=0.8")
    swept = load_file(made / "density=0.5,t=0.8" / "model.safetensors")
    assert all(np.array_equal(swept[name], value) for name, value in alone.items())


def test_every_recipe_here_is_run_by_a_test() -> None:
    """A recipe that is added to workflows/ gets a test in this file."""
    text = Path(__file__).read_text(encoding="utf-8")
    assert [recipe.name for recipe in WORKFLOWS.glob("*.yaml") if f'"{recipe.name}"' not in text] == []
