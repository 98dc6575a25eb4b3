"""What is merged with what, and which parameters count there, as far as the recipe alone says it.

A step of whole models merges one list of ingredients. Of slices, each has a list of its own; so has each module.

    models:     [base, a, b]                          one Part, one Ingredients (a base that is not listed comes last)
    slices:     [[a 0:8, b 0:8], [c 8:16]]            one Part, an Ingredients for each slice
    modules:    {text: slices, vision: models}        a Part for each

Where a parameter is looked up, first place with a value first:

    of one input    the input's own, its slice's, its module's, the step's       (weight, density, ...)
    shared          the slice's, the module's, the step's                        (t, lambda, normalize, ...)

The base is the slice's own, else the step's. A base that is not listed takes part in a merge of whole models, never
in a slice: there the layers of each source must be given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mergeflow.methods.schema import Method
from mergeflow.recipe.nodes import join
from mergeflow.recipe.records import Input, Parameters, Slice, Source, Step


@dataclass(frozen=True, slots=True)
class Level:
    """One place where parameters stand: its path in the step, and what is set there."""

    path: str
    parameters: Parameters


@dataclass(frozen=True, slots=True)
class Ingredient:
    """One input of a merge.

    Args:
        path: the field of the step that names it.
        levels: where its parameters are looked up, its own place first.
        first: the first of its layers, in a slice.
    """

    source: Source
    path: str
    levels: tuple[Level, ...]
    first: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Ingredients:
    """The inputs of one merge, in listed order, with its base. (Two are never equal: they are places in a recipe.)

    Args:
        path: the list in the step, such as ``models`` or ``slices[1].sources``.
        levels: where shared parameters are looked up.
        layers: how many layers each input gives; None for whole models.
    """

    inputs: tuple[Ingredient, ...]
    base: Source | None
    levels: tuple[Level, ...]
    path: str
    layers: int | None = None

    def based(self, method: Method) -> Source | None:
        """The base a method works with; None when it has none, or takes it for an ordinary input."""
        return self.base if method.base != "ignored" else None

    def operands(self, method: Method) -> tuple[int, ...]:
        """The places in `inputs` that a method is applied to: all but its base."""
        base = self.based(method)
        return tuple(index for index, entry in enumerate(self.inputs) if entry.source != base)

    def own_paths(self) -> tuple[str, ...]:
        """Where the parameters of single inputs stand."""
        return tuple(entry.levels[0].path for entry in self.inputs if len(entry.levels) > len(self.levels))

    def place_of(self, source: Source) -> int | None:
        """The place of a source in `inputs`."""
        return next((index for index, entry in enumerate(self.inputs) if entry.source == source), None)


@dataclass(frozen=True, slots=True)
class Part:
    """A module of a step's result, or (`module` None) all of it: whole models, or slices one behind the other."""

    module: str | None
    path: str
    ingredients: tuple[Ingredients, ...]

    @property
    def is_sliced(self) -> bool:
        return self.ingredients[0].layers is not None


def parts_of(step: Step) -> tuple[Part, ...]:
    """What a step merges, part by part, in the order of the recipe."""
    own = (Level("parameters", step.parameters),)
    if not step.modules:
        return (Part(None, "", tuple(_ingredients(step.inputs, step.slices, step.base, own, ""))),)
    parts = []
    for module in step.modules:
        path = join("modules", module.name)
        levels = (Level(join(path, "parameters"), module.parameters), *own)
        made = tuple(_ingredients(module.inputs, module.slices, step.base, levels, path))
        parts.append(Part(module.name, path, made))
    return tuple(parts)


def _ingredients(
    inputs: tuple[Input, ...], slices: tuple[Slice, ...], base: Source | None, levels: tuple[Level, ...], path: str
) -> Iterator[Ingredients]:
    for index, part in enumerate(slices):
        here = join(path, f"slices[{index}]")
        mine = (Level(f"{here}.parameters", part.parameters), *levels)
        listed = _listed(part.inputs, f"{here}.sources", mine)
        first, behind = part.inputs[0].layers or (0, 0)
        yield Ingredients(listed, part.base or base, mine, f"{here}.sources", behind - first)
    if not slices:
        here = join(path, "models")
        listed = _listed(inputs, here, levels)
        if base is not None and all(entry.source != base for entry in listed):
            listed = (*listed, Ingredient(base, "base_model", levels))
        yield Ingredients(listed, base, levels, here)


def _listed(inputs: tuple[Input, ...], path: str, levels: tuple[Level, ...]) -> tuple[Ingredient, ...]:
    return tuple(
        Ingredient(
            source=entry.source,
            path=f"{path}[{index}].model",
            levels=(Level(f"{path}[{index}].parameters", entry.parameters), *levels),
            first=entry.layers[0] if entry.layers is not None else 0,
        )
        for index, entry in enumerate(inputs)
    )
