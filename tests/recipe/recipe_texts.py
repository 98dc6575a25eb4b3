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

# Slices, as in the specification's example of every syntax.
SLICED = """\
merge_method: dare_ties
base_model: org/base@v2
slices:
  - sources:
      - {model: org/base@v2, layer_range: [0, 8]}
      - model: org/tune-a+org/some-lora
        layer_range: [0, 8.0]
        parameters:
          weight: [0.2, 0.6]
    parameters: {lambda: 0.9}
  - sources:
      - {model: org/base@v2, layer_range: [8, "9"]}
    base_model: org/other
parameters:
  weight: 1.0
dtype: float32
out_dtype: bfloat16
"""
MODULES = """\
merge_method: linear
modules:
  vision:
    models: [{model: ./a, parameters: {weight: 2}}]
  text:
    slices:
      - {sources: [{model: ./a, layer_range: [0, 1]}, {model: ./b, layer_range: [3, 4]}], base_model: ./c}
    parameters: {weight: 1}
parameters: {weight: 3}
"""
TOKENS = """\
tokenizer:
  source: union
  pad_to_multiple_of: 16
  tokens:
    <|im_start|>: {source: ./a}
    <|tool|>: {source: {kind: zero}, force: "yes"}
    <|new|>: {source: {kind: model_token, model: ./b, token: <|im_end|>}}
    5: {source: {kind: model_token, model: {model: ./b}, token_id: "7"}}
    <|any|>:
"""
TWO = """\
name: halfway
merge_method: linear
models:
  - {model: /m/alpha, parameters: {weight: 2}}
  - {model: /m/beta, parameters: {weight: 1}}
---
merge_method: slerp
base_model: halfway
models: [{model: halfway}, {model: /m/gamma}]
parameters: {t: 0.3}
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
