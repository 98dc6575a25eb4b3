"""Which tensors of its inputs make each tensor of a step's result: one list, for whole models, slices and modules.

    a  layers.0 layers.1 layers.2              slices: [a 0:2], [a 1:3, b 1:3]
    b  layers.0 layers.1 layers.2
                                               out layers.0 <- a layers.0             t = 0
                                               out layers.1 <- a layers.1             t = 1
                                               out layers.2 <- a layers.1, b layers.1  t = 0
                                               out layers.3 <- a layers.2, b layers.2  t = 1

Tensors are paired by name: in a layer by what comes behind its number, so layers that differ from each other (dense
beside experts) pair as far as they have the same parts. A slice's ramp of gradients goes over its own layers; what
lies before the layers is merged from what the first slice lists, what lies behind them from what the last one lists,
both at t = 0.

A model that lacks a tensor is marked by None among the names; what becomes of such a tensor is decided where it is
lowered (`lacking.py`). A model with tied weights lacks none of their names (`models.tied`).

Nothing is left out: a module that the recipe does not name, and a tensor outside the layers that no model of its
slice has, are carried over from the model that has them, and are reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mergeflow.errors import counted, some
from mergeflow.graph.check import Finding
from mergeflow.graph.ingredients import Ingredient, Ingredients, Part
from mergeflow.graph.modules import Domain, divide
from mergeflow.graph.stock import Stock, all_names, layer_name, split_name
from mergeflow.models.layout import Layout, infer_layout
from mergeflow.recipe.records import Source


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a step's result.

    Args:
        names: of the tensor of each of the ingredients' inputs that it is made from; None where there is none.
        t: gradient position, 0 to 1.
    """

    name: str
    ingredients: Ingredients
    names: tuple[str | None, ...]
    t: float


@dataclass(frozen=True, slots=True)
class StackOrigin:
    """Where the layers of one stack come from: for each, the first source listed for it and the layer there."""

    prefix: str
    layers: tuple[tuple[Source, int], ...]


@dataclass(slots=True)
class Arrangement:
    """The tensors of a step's result in order, what its stacks are made of, and what was found on the way."""

    entries: list[Entry] = field(default_factory=list)
    stacks: list[StackOrigin] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def arrange(parts: Sequence[Part], stocks: Mapping[Source, Stock], donor: Source) -> Arrangement:
    """The arrangement of a step. With errors among its findings, it is not complete.

    Args:
        stocks: of every source of the step, in the order of the step.
        donor: the source that what no module takes is carried over from.
    """
    made = Arrangement()
    shapes = all_names(stocks.values())
    layout = infer_layout(shapes)
    domains, left, problems = divide(parts, layout, list(shapes))
    made.findings += problems
    for domain in domains:
        work = _Domain(domain, stocks, shapes, layout, made)
        if domain.part.is_sliced:
            work.add_slices()
        else:
            work.add_whole()
    _carry(left, stocks, donor, made)
    return made


@dataclass(slots=True)
class _Domain:
    """The tensors of one part of a step while they are arranged."""

    domain: Domain
    stocks: Mapping[Source, Stock]
    shapes: Mapping[str, tuple[int, ...]]
    layout: Layout
    made: Arrangement

    def add_whole(self) -> None:
        (ingredients,) = self.domain.part.ingredients
        stocks = [self.stocks[entry.source] for entry in ingredients.inputs]
        for name in all_names(stocks):
            if self.domain.has(name):
                self._add(name, ingredients, [name] * len(stocks), self.layout.gradient_position(name))
        first = next((it for it in ingredients.inputs if it.source == ingredients.base), ingredients.inputs[0])
        counts = self.stocks[first.source].layout.stacks
        for stack in self.domain.stacks:
            layers = tuple((first.source, layer) for layer in range(counts.get(stack, 0)))
            self.made.stacks.append(StackOrigin(stack, layers))

    def add_slices(self) -> None:
        part = self.domain.part
        stack = self._one_stack()
        if stack is None:
            return
        loose = [name for name in self.shapes if self.domain.has(name) and split_name(name, self.layout)[1] is None]
        before = [name for name in loose if self.layout.place(name).side == "before"]
        for name in before:
            self._add_loose(name, part.ingredients[0])
        origins: list[tuple[Source, int]] = []
        for ingredients in part.ingredients:
            count = ingredients.layers or 0
            stacks = list(self._stacks_of(ingredients, stack))
            if len(stacks) < len(ingredients.inputs):
                continue
            for offset in range(count):
                t = offset / (count - 1) if count > 1 else 1.0
                self._add_layer(ingredients, stack, len(origins), stacks, offset, t)
                first = ingredients.inputs[0]
                origins.append((first.source, first.first + offset))
        self.made.stacks.append(StackOrigin(stack, tuple(origins)))
        for name in loose:
            if name not in before:
                self._add_loose(name, part.ingredients[-1])

    def _one_stack(self) -> str | None:
        """The stack whose layers are sliced; None, reported, when there are several, or none."""
        part = self.domain.part
        wanted = any(ingredients.layers for ingredients in part.ingredients)
        if len(self.domain.stacks) == 1 or not (wanted or self.domain.stacks):
            return self.domain.stacks[0] if self.domain.stacks else ""
        path = f"{part.path}.slices".lstrip(".")
        if not self.domain.stacks:
            self.made.findings.append(Finding(path, "there are no layers here to take slices of: list models instead"))
            return None
        named = ", ".join(self.domain.stacks)
        message = f"these models have layers in several stacks ({named}): say under 'modules' what each is made of"
        self.made.findings.append(Finding(path, message))
        return None

    def _stacks_of(self, ingredients: Ingredients, stack: str) -> Iterator[str]:
        """The name of the sliced stack in each source; sources that lack it, or some of its layers, are reported."""
        for entry in ingredients.inputs:
            stock = self.stocks[entry.source]
            stacks = stock.layout.stacks
            own = next(iter(stacks)) if stack not in stacks and len(stacks) == 1 else stack
            behind = entry.first + (ingredients.layers or 0)
            if behind > stacks.get(own, 0) and stock.type == "weights" and ingredients.layers:
                has = counted(stacks.get(own, 0), "layer")
                message = f"{entry.source} has {has} in {own}; [{entry.first}, {behind}] goes beyond them"
                path = f"{entry.path.removesuffix('model')}layer_range"
                self.made.findings.append(Finding(path, message))
            else:
                yield own

    def _add_layer(
        self, ingredients: Ingredients, stack: str, number: int, stacks: Sequence[str], offset: int, t: float
    ) -> None:
        """One layer of the result: every part that a source has in its layer."""
        places = [(own, entry.first + offset) for own, entry in zip(stacks, ingredients.inputs, strict=True)]
        parts: dict[str, None] = {}
        for place, entry in zip(places, ingredients.inputs, strict=True):
            parts |= dict.fromkeys(self.stocks[entry.source].layers.get(place, ()))
        for rest in parts:
            names = [layer_name(*place, rest) for place in places]
            self._add(layer_name(stack, number, rest), ingredients, names, t)

    def _add_loose(self, name: str, ingredients: Ingredients) -> None:
        """A tensor outside the layers, from its own slice, or from the first slice whose models have it."""
        names = [name] * len(ingredients.inputs)
        if self._add(name, ingredients, names, 0.0):
            return
        for other in self.domain.part.ingredients:
            if self._add(name, other, [name] * len(other.inputs), 0.0):
                message = f"no model of {ingredients.path} has {name}: it comes from {other.path}"
                self.made.findings.append(Finding(ingredients.path, message, "warning"))
                return

    def _add(self, name: str, ingredients: Ingredients, sought: Sequence[str], t: float) -> bool:
        """Whether one of the inputs has the tensor sought; if so, it is made an entry."""
        stocks = [self.stocks[entry.source] for entry in ingredients.inputs]
        shape = next((stock.shapes[it] for stock, it in zip(stocks, sought, strict=True) if it in stock.shapes), None)
        shape = shape if shape is not None else self.shapes.get(name)
        if shape is None:
            return False
        names = tuple(stock.holding(it, shape) for stock, it in zip(stocks, sought, strict=True))
        if all(it is None for it in names):
            return False
        self.made.entries.append(Entry(name, ingredients, names, t))
        return True


def _carry(names: Sequence[str], stocks: Mapping[Source, Stock], donor: Source, made: Arrangement) -> None:
    """What no module of the recipe takes, from the donor as it is."""
    stock = stocks[donor]
    own = [name for name in names if name in stock.shapes]
    if not own:
        return
    ingredients = Ingredients((Ingredient(donor, "modules", ()),), None, (), "modules")
    made.entries += [Entry(name, ingredients, (name,), 0.0) for name in own]
    stacks = dict.fromkeys(split_name(name, stock.layout)[0] for name in own)
    made.stacks += [
        StackOrigin(stack, tuple((donor, layer) for layer in range(stock.layout.stacks[stack])))
        for stack in stacks
        if stack
    ]
    message = f"no module takes {some(own)}: carried over unchanged from {stock.label}"
    made.findings.append(Finding("modules", message, "warning"))
