"""A folder with three small models and a recipe of four steps over them."""

from __future__ import annotations

import time
from pathlib import Path

from tiny_checkpoints import llama

RECIPE = """\
mergeflow: 1
models: {base: ./base, a: ./a, b: ./b}
vars: {density: 0.5, t: 0.4}
steps:
  skill_a: {task_vector: {model: a, base: base}}
  skill_b: {task_vector: {model: b, base: base}}
  skills:
    merge_method: ties
    base_model: base
    models:
      - {model: skill_a, parameters: {weight: 0.6, density: "${density}"}}
      - {model: skill_b, parameters: {weight: 0.4, density: 0.3}}
  final:
    merge_method: slerp
    base_model: base
    models: [{model: base}, {model: skills}]
    parameters: {t: "${t}"}
outputs: {final: {path: ./out}}
"""


def three_models(folder: Path) -> Path:
    """Write the models base, a and b and recipe.yaml into `folder`."""
    for seed, name in enumerate(("base", "a", "b")):
        llama(folder / name, seed)
    (folder / "recipe.yaml").write_text(RECIPE)
    settle()
    return folder


def settle() -> None:
    """Wait until files written before are old enough for their digests to be remembered (50 ms, models.digests)."""
    time.sleep(0.06)
