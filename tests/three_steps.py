"""The recipe of the laws and faults, and models that have every shape: two task vectors -> TIES -> SLERP with the base.

Numbers lie on a coarse grid, so that many magnitudes are equal and thresholds have to break ties; the specialists lie
far enough from their base for slerp to be spherical.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from tiny_checkpoints import write_model

from mergeflow.workflow.options import Options

NAMES = ("base", "math", "code")

# The largest is cut into six blocks of 65536 elements, the last of them a rest; it is large enough to be sampled.
LARGE = (701, 512)
LAYERS = 3

RECIPE = """\
mergeflow: 1
models: {base: ./base, math: ./math, code: ./code}
steps:
  math_skill:
    task_vector: {model: math, base: base}
  code_skill:
    task_vector: {model: code, base: base}
  skills:
    merge_method: ties
    base_model: base
    models:
      - {model: math_skill, parameters: {weight: 0.6, density: 0.5}}
      - {model: code_skill, parameters: {weight: 0.4, density: 0.3}}
  final:
    merge_method: slerp
    base_model: base
    models: [{model: base}, {model: skills}]
    parameters:
      t:
        - {filter: mlp, value: [0.2, 0.9]}
        - {value: [0.1, 0.5, 1]}
outputs:
  final: {path: ./out}
"""

# The same, its third step kept in the cache.
CACHED = RECIPE.replace("  skills:\n", "  skills:\n    cache: always\n")


def shapes(large: tuple[int, ...] = LARGE, layers: int = LAYERS) -> dict[str, tuple[int, ...]]:
    """Names and shapes: a few blocks, a row, 63 elements, one, none, and no dimension."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": large}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        found |= {
            prefix + "self_attn.q_proj.weight": (130, 512),
            prefix + "mlp.down_proj.weight": large,
            prefix + "input_layernorm.weight": (63,),
            prefix + "mlp.gate.bias": (1,),
        }
    return found | {"model.norm.weight": (63,), "model.scale": (), "model.unused.weight": (0, 4)}


def grid(generator: torch.Generator, shape: tuple[int, ...], step: float, spread: float) -> torch.Tensor:
    """Normal numbers rounded to multiples of `step`."""
    drawn = torch.randn(shape, generator=generator) * spread
    return (drawn / step).round() * step


def three_models(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    *,
    large: tuple[int, ...] = LARGE,
    layers: int = LAYERS,
    shards: int = 1,
) -> Path:
    """Write base, math and code below `folder`, settled, so that their digests are remembered. Returns `folder`."""
    generator = torch.Generator().manual_seed(20)
    base = {name: grid(generator, shape, 1 / 512, 0.5) for name, shape in shapes(large, layers).items()}
    for name in NAMES:
        moved = (
            base
            if name == "base"
            else {key: value + grid(generator, tuple(value.shape), 1 / 16, 0.25) for key, value in base.items()}
        )
        stored = {key: value.to(dtype).contiguous() for key, value in moved.items()}
        stored["model.position_ids"] = torch.arange(40)
        write_model(folder / name, stored, shards=shards)
    let_settle(folder)
    return folder


def let_settle(folder: Path) -> None:
    """Wait until a digest of what was just written may be remembered: a tick of the file system's clock."""
    newest = max(path.stat().st_ctime_ns for path in folder.rglob("*.safetensors"))
    while time.time_ns() <= newest + 60_000_000:
        time.sleep(0.01)


def write_recipe(folder: Path, text: str = RECIPE, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def options(folder: Path, **wishes: object) -> Options:
    """A cache and a memory of digests in `folder`, two workers, unless said otherwise."""
    stated: dict[str, object] = {"cache": folder / "cache", "state": folder / "state", "workers": 2, "device": "cpu"}
    return Options(**(stated | wishes))  # type: ignore[arg-type]


def weights(folder: Path) -> dict[str, bytes]:
    """The bytes of a model's weights: its shards, and the index when there is one."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("model*"))}
