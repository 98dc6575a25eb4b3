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
Variable = Scalar | tuple[Scalar, ...]
CachePolicy = Literal["auto", "always", "never"]
Form = Literal["native", "mergekit"]


@dataclass(frozen=True, slots=True)
class AdapterReference:
    """A low-rank adapter as the user names it: a folder or a hub id, and by how much it is multiplied."""

    path: str
    revision: str | None = None
    weight: float = 1.0

    def __str__(self) -> str:
        times = f"{self.weight!r}*" if self.weight != 1 else ""
        return times + self.path + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A checkpoint as the user names it: a folder, or a hub id with an optional revision, and adapters added to it.

    Two references are the same model when they are equal. `str()` gives the canonical text.

    An empty `path` with one adapter is that adapter alone: a delta. It stands only as the one input of a step
    ``task_vector: {adapter: a}``, without a base or with a step for its base.
    """

    path: str
    revision: str | None = None
    adapters: tuple[AdapterReference, ...] = ()

    def __str__(self) -> str:
        text = self.path + (f"@{self.revision}" if self.revision else "")
        return text + "".join(f"+{adapter}" for adapter in self.adapters)

    @property
    def is_adapter(self) -> bool:
        """Whether this is an adapter alone: a delta, not a model."""
        return not self.path and bool(self.adapters)


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
    """One entry of a step's `models` or of a slice's `sources`: where its tensors come from and its own parameters.

    `layers` are, in a slice, the first layer and the one behind the last; None for a whole model.
    """

    source: Source
    parameters: Parameters = field(default_factory=dict)
    position: Position | None = None
    layers: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Slice:
    """Consecutive layers of a step's result: as many as each of `inputs` gives, made from those, one by one.

    `base` and `parameters` come before those of the module and of the step.
    """

    inputs: tuple[Input, ...]
    base: Source | None = None
    parameters: Parameters = field(default_factory=dict)
    position: Position | None = None


@dataclass(frozen=True, slots=True)
class Module:
    """One part of a model with layers of its own (a vision tower, a decoder), made of `inputs` whole or of `slices`."""

    name: str
    inputs: tuple[Input, ...] = ()
    slices: tuple[Slice, ...] = ()
    parameters: Parameters = field(default_factory=dict)
    position: Position | None = None


@dataclass(frozen=True, slots=True)
class ModelToken:
    """The row of one token of one model, named by its text or by its id."""

    model: Source
    token: str | None = None
    token_id: int | None = None


@dataclass(frozen=True, slots=True)
class TokenRow:
    """Where the row of one token comes from: a model's own row of it, another token's, or zeros (``zero``).

    None: as for any other token. With `force`, of models that have the token too.
    """

    source: Source | ModelToken | Literal["zero"] | None = None
    force: bool = False
    position: Position | None = None


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The vocabulary of a step's result: that of its base, of a model, or the ``union`` of all its models'."""

    source: Literal["union", "base"] | Source = "union"
    tokens: Mapping[str, TokenRow] = field(default_factory=dict)
    pad_to_multiple_of: int | None = None
    position: Position | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One merge (or one task vector), as written.

    A step ``task_vector: {model: m, base: b}`` has `merge_method` ``task_vector``, one input `m`, base `b`;
    ``task_vector: {adapter: a}`` the input `ModelReference("", adapters=(a,))`, and with a checkpoint `b` for its base
    the input `b+a` (the difference of the two is the adapter alone).
    Exactly one of `inputs` (whole models), `slices` and `modules` is not empty. `vocabulary` is None where the
    tokenizer is the base's and embeddings are merged row by row. `positions` maps a field's path inside the step
    (``models[1].parameters.t``, ``slices[0].sources[1].model``, ``base_model``) to its place; `path` is where the step
    itself stands (``steps.final``, ``documents[1]``; empty: the step is the file).
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
    slices: tuple[Slice, ...] = ()
    modules: tuple[Module, ...] = ()
    vocabulary: Vocabulary | None = None
    chat_template: str | None = None
    path: str = ""

    @property
    def is_adapter(self) -> bool:
        """Whether the step is an adapter alone: a delta as it is, not a difference of two models."""
        only = self.inputs[0].source if len(self.inputs) == 1 else None
        return isinstance(only, ModelReference) and only.is_adapter

    def sources(self) -> tuple[Source, ...]:
        """Every model or step this step merges: its inputs in listed order, then its bases if not among them."""
        slices = [*self.slices, *(part for module in self.modules for part in module.slices)]
        entries = [*self.inputs, *(entry for module in self.modules for entry in module.inputs)]
        entries += [entry for part in slices for entry in part.inputs]
        bases = [base for base in (self.base, *(part.base for part in slices)) if base is not None]
        return tuple(dict.fromkeys([*(entry.source for entry in entries), *bases]))

    def position(self, path: str = "") -> Position | None:
        """Where the field `path` stands; the nearest enclosing field's place when it is not written out."""
        while path and path not in self.positions:
            cut = max(path.rfind("."), path.rfind("["))
            path = path[:cut] if cut > 0 else ""
        return self.positions.get(path)


DEFAULT_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True, slots=True)
class Output:
    """A model to write: the step it comes from, the folder (None: given on the command line), how it is stored.

    `delta` says how a step that is a delta is written, which a recipe cannot ask for and `mergeflow export` does: as a
    folder, or as one file that holds its lock itself. None: such a step is an error.
    """

    step: str
    path: str | None = None
    dtype: str | None = None
    max_shard_bytes: int = DEFAULT_SHARD_BYTES
    tokenizer: Source | None = None
    position: Position | None = None
    delta: Literal["folder", "file"] | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole recipe. `problems` holds what was wrong or doubtful while reading; it runs only without errors.

    `folder` is where relative paths start: the recipe's folder, or the current one for a mergekit file (with
    the file's folder to fall back on: `fallback_folder`). `positions` has the place of each name under `models`.

    Of a recipe with a sweep, `sweep` has the values of each swept variable, and `candidates` the recipe of each of
    their combinations, first variable slowest; the rest is that of the first candidate. `candidate` is the name of
    such a one, which is also the name of its folder: ``density=0.3,t=0.2``.
    """

    file: str
    text: str
    form: Form
    folder: Path
    steps: tuple[Step, ...]
    outputs: tuple[Output, ...]
    models: Mapping[str, ModelReference] = field(default_factory=dict)
    variables: Mapping[str, Variable] = field(default_factory=dict)
    seed: int = 0
    fallback_folder: Path | None = None
    problems: tuple[Problem, ...] = ()
    positions: Mapping[str, Position] = field(default_factory=dict)
    sweep: Mapping[str, tuple[Variable, ...]] = field(default_factory=dict)
    candidates: tuple[Recipe, ...] = ()
    candidate: str = ""

    def step(self, name: str) -> Step:
        """The step called `name`; KeyError when there is none."""
        for step in self.steps:
            if step.name == name:
                return step
        raise KeyError(name)
