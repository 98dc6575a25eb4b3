"""What a recipe says, once read: frozen, typed, and knowing where each value stands in the file.

    text -> (recipe.read) -> Recipe
                               ├── models   alias -> ModelReference
                               ├── steps    Step(inputs, base, parameters: name -> Setting)
                               └── outputs  Output(step, path, ...)

Nothing here knows a tensor, a method or a file on disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mergeflow.errors import Position, Problem

Scalar = bool | int | float | str
CachePolicy = Literal["auto", "always", "never"]
Form = Literal["native", "mergekit"]


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A checkpoint as the user names it: a folder, or a hub id with an optional revision (and adapter).

    Two references are the same model when they are equal. `str()` gives the canonical text.
    """

    path: str
    revision: str | None = None
    adapter: str | None = None
    adapter_revision: str | None = None

    def __str__(self) -> str:
        text = self.path + (f"@{self.revision}" if self.revision else "")
        if self.adapter:
            text += f"+{self.adapter}" + (f"@{self.adapter_revision}" if self.adapter_revision else "")
        return text


@dataclass(frozen=True, slots=True)
class StepReference:
    """The result of another step, by its name."""

    name: str

    def __str__(self) -> str:
        return self.name


Source = ModelReference | StepReference


@dataclass(frozen=True, slots=True)
class Branch:
    """One value of a setting and the tensors it is for.

    `value` is a scalar, or a tuple: a gradient, spread over the layers. `filter` is a plain case-sensitive
    substring of the tensor's name; None and ``*`` match every tensor.
    """

    value: Scalar | tuple[Scalar, ...]
    filter: str | None = None
    position: Position | None = None

    def matches(self, name: str) -> bool:
        return self.filter is None or self.filter == "*" or self.filter in name


@dataclass(frozen=True, slots=True)
class Setting:
    """The value of one parameter: the first branch whose filter matches decides."""

    branches: tuple[Branch, ...]
    position: Position | None = None


Parameters = Mapping[str, Setting]


@dataclass(frozen=True, slots=True)
class Input:
    """One entry of a step's `models`: where its tensors come from and its own parameters."""

    source: Source
    parameters: Parameters = field(default_factory=dict)
    position: Position | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One merge (or one task vector), as written.

    A step ``task_vector: {model: m, base: b}`` has `merge_method` ``task_vector``, one input `m`, base `b`.
    `positions` maps a field's path inside the step (``models[1].parameters.t``, ``base_model``) to its place.
    """

    name: str
    merge_method: str
    inputs: tuple[Input, ...]
    base: Source | None = None
    parameters: Parameters = field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    cache: CachePolicy = "auto"
    positions: Mapping[str, Position] = field(default_factory=dict)

    def sources(self) -> tuple[Source, ...]:
        """Every model or step this step reads: its inputs in listed order, then its base if not among them."""
        listed = tuple(entry.source for entry in self.inputs)
        return listed if self.base is None or self.base in listed else (*listed, self.base)

    def position(self, path: str = "") -> Position | None:
        """Where the field `path` stands; the nearest enclosing field's place when it is not written out."""
        while path and path not in self.positions:
            cut = max(path.rfind("."), path.rfind("["))
            path = path[:cut] if cut > 0 else ""
        return self.positions.get(path)


DEFAULT_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True, slots=True)
class Output:
    """A model to write: the step it comes from, the folder (None: given on the command line), how it is stored."""

    step: str
    path: str | None = None
    dtype: str | None = None
    max_shard_bytes: int = DEFAULT_SHARD_BYTES
    tokenizer: Source | None = None
    position: Position | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole recipe. `problems` holds what was wrong or doubtful while reading; it runs only without errors.

    `folder` is where relative paths start: the recipe's folder, or the current one for a mergekit file (with
    the file's folder to fall back on: `fallback_folder`). `positions` has the place of each name under `models`.
    """

    file: str
    text: str
    form: Form
    folder: Path
    steps: tuple[Step, ...]
    outputs: tuple[Output, ...]
    models: Mapping[str, ModelReference] = field(default_factory=dict)
    variables: Mapping[str, Scalar | tuple[Scalar, ...]] = field(default_factory=dict)
    seed: int = 0
    fallback_folder: Path | None = None
    problems: tuple[Problem, ...] = ()
    positions: Mapping[str, Position] = field(default_factory=dict)

    def step(self, name: str) -> Step:
        """The step called `name`; KeyError when there is none."""
        for step in self.steps:
            if step.name == name:
                return step
        raise KeyError(name)
