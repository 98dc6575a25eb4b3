"""Recipes as texts, with the places of their mistakes marked, for the tests of this folder."""

from __future__ import annotations

import textwrap
from pathlib import Path

from mergeflow.errors import Position
from mergeflow.recipe.read import read_recipe
from mergeflow.recipe.records import Recipe

FILE = "recipe.yml"
MARK = "▶"

# The recipe of the design.
DESIGN = """\
mergeflow: 1
models:
  base: ./models/base
  math: ./models/math
  chat: org/chat-7b@5a1c2e9
vars: {density: 0.5}
steps:
  math_skill:
    task_vector: {model: math, base: base}
  skills:
    merge_method: ties
    base_model: base
    models:
      - {model: math_skill, parameters: {weight: 0.6, density: "${density}"}}
      - {model: ./models/code, parameters: {weight: 0.4, density: 0.3}}
  final:
    merge_method: slerp
    base_model: chat
    models: [{model: chat}, {model: skills}]
    parameters: {t: [0, 0.5, 1]}
outputs:
  final: {path: ./out/final, dtype: bfloat16, tokenizer: {source: chat}, max_shard_size: 5GB}
"""

MERGEKIT = """\
merge_method: slerp
base_model: models/a
models:
- model: models/a
- model: models/b
  parameters:
    weight: 0.3
parameters:
  t: 0.5
dtype: float32
"""


def marked(text: str) -> tuple[str, list[tuple[int, int]]]:
    """A dedented text without its marks, and the line and column each mark stood before."""
    text = textwrap.dedent(text)
    places = []
    while MARK in text:
        before, _, after = text.partition(MARK)
        places.append((before.count("\n") + 1, len(before) - before.rfind("\n")))
        text = before + after
    return text, places


def read(text: str, overrides: dict[str, str] | None = None, folder: Path | None = None) -> Recipe:
    return read_recipe(FILE, overrides or {}, text=textwrap.dedent(text), working_folder=folder)


def step_with(body: str) -> str:
    """A native recipe of one step, whose fields are the lines of `body`."""
    return "mergeflow: 1\nsteps:\n  only:\n" + textwrap.indent(textwrap.dedent(body), "    ")


def messages(recipe: Recipe, severity: str = "error") -> list[str]:
    return [problem.message for problem in recipe.problems if problem.severity == severity]


def places(recipe: Recipe) -> list[tuple[int, int] | None]:
    return [(p.position.line, p.position.column) if p.position else None for p in recipe.problems]


def at(line: int, column: int) -> Position:
    return Position(FILE, line, column)
