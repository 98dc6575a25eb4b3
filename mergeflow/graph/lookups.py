"""The parameters of each tensor of a step: every parameter of its method, at the places where it may be set.

A shared parameter's filters are held against the name of the output tensor, those of an input's own parameter
against the name of that input's tensor: where layers are stacked, the two are not the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mergeflow.errors import Position
from mergeflow.graph.arrange import Entry
from mergeflow.graph.check import out_of_bounds
from mergeflow.graph.ingredients import Ingredients, Level
from mergeflow.methods.schema import Method, Parameter, Value, _Required
from mergeflow.recipe.resolve import Lookup, lookup_in
from mergeflow.recipe.settings import SettingError


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a field of a step."""

    message: str
    position: Position | None = None


@dataclass(slots=True)
class Resolved:
    """The parameters of one tensor: shared ones, those of each operand, and what is wrong, by its field."""

    shared: dict[str, Value | None] = field(default_factory=dict)
    own: list[dict[str, Value | None]] = field(default_factory=list)
    faults: list[tuple[str, Fault]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Question:
    """One parameter of one operand (or, without a place, of all), and where it is looked up."""

    declared: Parameter
    place: int | None
    path: str
    find: Lookup
    filtered: tuple[str, ...]


@dataclass
class Lookups:
    """The parameters of a method; `asked` are the names that each setting with filters was held against."""

    method: Method
    asked: dict[str, dict[str, None]] = field(default_factory=dict)
    _questions: dict[int, tuple[_Question, ...]] = field(default_factory=dict)

    def resolve(self, entry: Entry, places: Sequence[int]) -> Resolved:
        """The parameters of the tensor of an entry, for the operands at `places` of its ingredients' inputs."""
        found = Resolved(own=[{} for _ in places])
        values = dict(zip(places, found.own, strict=True))
        for question in self._of(entry.ingredients):
            target = found.shared if question.place is None else values.get(question.place)
            if target is None:
                continue
            # A delta that lacks the tensor has no name for it: the result's stands for it.
            name = (entry.names[question.place] if question.place is not None else None) or entry.name
            for path in question.filtered:
                self.asked[path][name] = None
            value = _value(self.method, question, name, entry.t)
            if isinstance(value, Fault):
                found.faults.append((question.path, value))
            else:
                target[question.declared.name] = value
        return found

    def _of(self, ingredients: Ingredients) -> tuple[_Question, ...]:
        if id(ingredients) not in self._questions:
            self._questions[id(ingredients)] = tuple(self._ask(ingredients))
        return self._questions[id(ingredients)]

    def _ask(self, ingredients: Ingredients) -> list[_Question]:
        questions = []
        for declared in self.method.parameters:
            if declared.scope == "shared":
                questions.append(self._question(declared, None, "parameters", ingredients.levels))
                continue
            for place in ingredients.operands(self.method):
                levels = ingredients.inputs[place].levels
                questions.append(self._question(declared, place, levels[0].path, levels))
        return questions

    def _question(self, declared: Parameter, place: int | None, path: str, levels: Sequence[Level]) -> _Question:
        name = declared.name
        find = lookup_in([level.parameters for level in levels], name, declared.kind)
        filtered = tuple(
            f"{level.path}.{name}"
            for level in levels
            if name in level.parameters and any(branch.filter for branch in level.parameters[name].branches)
        )
        for setting in filtered:
            self.asked.setdefault(setting, {})
        return _Question(declared, place, f"{path}.{name}", find, filtered)


def _value(method: Method, question: _Question, name: str, t: float) -> Value | Fault | None:
    declared = question.declared
    try:
        value = question.find(name, t)
    except SettingError as error:
        return Fault(str(error), error.position)
    if value is None:
        if isinstance(declared.default, _Required):
            return Fault(f"{method.name} needs {declared.name!r} for every tensor: add a value without a filter")
        return declared.default
    fault = out_of_bounds(declared, value)
    return value if fault is None else Fault(fault)
