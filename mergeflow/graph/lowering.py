"""One step, tensor by tensor: each entry of its arrangement becomes operations of the graph.

Integer and boolean tensors (position ids, counters) are carried along unchanged by every method when they are equal
in all models that have them, and are an error when they are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import reduce

from mergeflow.dtypes import DType, by_name, promote
from mergeflow.errors import Problem
from mergeflow.graph.arrange import Arrangement, Entry
from mergeflow.graph.check import step_path, step_problem
from mergeflow.graph.lacking import Decision, Lacking, decide
from mergeflow.graph.lookups import Fault, Lookups
from mergeflow.graph.match import contents_differ, is_buffer
from mergeflow.graph.nodes import Graph
from mergeflow.graph.values import Parameters, Result, Tensor
from mergeflow.methods.combination import combine
from mergeflow.methods.schema import Call, Method, Operand, Value, ValueType
from mergeflow.recipe.records import Form, Source, Step
from mergeflow.recipe.resolve import unmatched_filters


@dataclass(frozen=True, slots=True)
class Lowered:
    """The tensors of a step that could be lowered, with their parameters, and what was found on the way."""

    tensors: Mapping[str, Tensor]
    parameters: Mapping[str, Parameters]
    problems: tuple[Problem, ...]


def lower_step(
    graph: Graph,
    step: Step,
    method: Method,
    gives: ValueType,
    arrangement: Arrangement,
    inputs: Mapping[Source, Result],
    seed: int,
    form: Form,
) -> Lowered:
    """The tensors of one step, added to the graph.

    Args:
        gives: whether the step makes weights or a delta.
        inputs: what each of the step's sources stands for.
        seed: the recipe's.
    """
    work = _Step(graph, step, method, gives, inputs, seed)
    tensors: dict[str, Tensor] = {}
    parameters: dict[str, Parameters] = {}
    for entry in arrangement.entries:
        with suppress(_Stop):
            made = work.lower(entry)
            if made is not None:
                tensors[entry.name], parameters[entry.name] = made
    names = [entry.name for entry in arrangement.entries]
    problems = [
        *work.faults.problems(step, form, len(names)),
        *(step_problem(step, form, it.path, it.message, it.severity) for it in work.lacking.warnings()),
        *unmatched_filters(step, names, step_path(step, form), work.lookups.asked),
    ]
    return Lowered(tensors, parameters, tuple(problems))


class _Stop(Exception):
    """A tensor cannot be lowered; its problem is recorded already."""


@dataclass
class Faults:
    """What is wrong with fields of a step, and for which tensors."""

    found: dict[str, tuple[Fault, list[str]]] = field(default_factory=dict)

    def note(self, path: str, fault: Fault, name: str) -> None:
        """Note what is wrong for one tensor; the first tensor's words stand for all."""
        self.found.setdefault(path, (fault, []))[1].append(name)

    def problems(self, step: Step, form: Form, total: int) -> Iterator[Problem]:
        """One problem for each field that has faults, however many of the `total` tensors have them."""
        for path, (fault, tensors) in self.found.items():
            first, *more = tensors
            which = f" (tensor {first}{f' and {len(more)} more' if more else ''})" if len(tensors) < total else ""
            yield step_problem(step, form, path, fault.message + which, position=fault.position)


@dataclass
class _Step:
    """The state of lowering one step."""

    graph: Graph
    step: Step
    method: Method
    gives: ValueType
    inputs: Mapping[Source, Result]
    seed: int
    faults: Faults = field(default_factory=Faults)
    lacking: Lacking = field(default_factory=Lacking)
    lookups: Lookups = field(init=False)

    def __post_init__(self) -> None:
        self.lookups = Lookups(self.method)

    def lower(self, entry: Entry) -> tuple[Tensor, Parameters] | None:
        """The tensor of an entry; None when it is left out."""
        results = [self.inputs[it.source] for it in entry.ingredients.inputs]
        types = [result.type for result in results]
        found = [
            result.tensors[name] if name is not None else None
            for result, name in zip(results, entry.names, strict=True)
        ]
        decision = decide(entry, self.method, self.gives, types)
        held = [(results[place].label, tensor) for place, tensor in enumerate(found) if tensor is not None]
        if None in entry.names:
            self.lacking.note(entry, decision, [result.label for result in results], types)
        if decision.fate == "drop":
            return None
        read = _reading(entry, [place for place in decision.inputs if found[place] is not None])
        if is_buffer(self.graph, [tensor.node for _, tensor in held]):
            return self._carry_buffer(entry, held), Parameters({}, (), read, entry.ingredients)
        if decision.fate == "merge":
            return self._merge(entry, decision, found)
        kept = found[decision.inputs[0]]
        assert kept is not None  # what is carried is there
        if decision.fate == "equal":
            self._expect_equal(entry, held)
        return self._rounded(kept.node, kept.stored), Parameters({}, (), read[:1], entry.ingredients)

    def _merge(self, entry: Entry, decision: Decision, found: Sequence[Tensor | None]) -> tuple[Tensor, Parameters]:
        ingredients = entry.ingredients
        places = [place for place in ingredients.operands(self.method) if place in decision.inputs]
        shared, own = self._parameters(entry, places)
        tensors = [tensor for tensor in found if tensor is not None]
        nothing = self._zeros(tensors[0].node) if decision.zeros else tensors[0].node
        nodes = [tensor.node if tensor is not None else nothing for tensor in found]
        base = ingredients.based(self.method)
        base_place = ingredients.place_of(base) if base is not None else None
        call = Call(
            operands=tuple(
                Operand(nodes[place], self.inputs[ingredients.inputs[place].source].type, values)
                for place, values in zip(places, own, strict=True)
            ),
            base=nodes[base_place] if base_place is not None else None,
            parameters=shared,
            shape=self.graph[tensors[0].node].shape,
            seed=self.seed,
        )
        try:
            node = self.method.lower(call, self._emit)
        except ValueError as error:
            self.faults.note("parameters", Fault(str(error)), entry.name)
            raise _Stop from None
        read = _reading(entry, [*places, *([base_place] if base_place is not None else [])])
        stored = reduce(promote, (tensor.stored for tensor in tensors))
        return self._rounded(node, stored), Parameters(shared, tuple(own), read, ingredients, tuple(places))

    def _parameters(
        self, entry: Entry, places: Sequence[int]
    ) -> tuple[dict[str, Value | None], list[dict[str, Value | None]]]:
        found = self.lookups.resolve(entry, places)
        for path, fault in found.faults:
            self.faults.note(path, fault, entry.name)
        if found.faults:
            raise _Stop
        return found.shared, found.own

    def _zeros(self, node: int) -> int:
        """Zeros of a tensor's shape: what a delta that lacks the tensor adds."""
        return combine(self._emit, [(node, 0.0)])

    def _rounded(self, node: int, stored: DType) -> Tensor:
        """A value in the formats that the step asks for."""
        for dtype in (self.step.dtype, self.step.out_dtype):
            if dtype:
                stored = by_name(dtype)
                node = self.graph.cast(node, stored)
        return Tensor(node, stored)

    def _emit(self, op: str, inputs: Sequence[int], **parameters: object) -> int:
        return self.graph.add(op, inputs, parameters)

    def _carry_buffer(self, entry: Entry, held: Sequence[tuple[str, Tensor]]) -> Tensor:
        difference = contents_differ(self.graph, [(label, tensor.node) for label, tensor in held])
        if difference:
            fault = Fault(f"an integer tensor is carried along, not merged: {difference}")
            self.faults.note(entry.ingredients.path, fault, entry.name)
            raise _Stop
        return held[0][1]

    def _expect_equal(self, entry: Entry, held: Sequence[tuple[str, Tensor]]) -> None:
        """What a method cannot merge, for want of its base, may be carried along only where all who have it agree."""
        difference = contents_differ(self.graph, [(label, tensor.node) for label, tensor in held])
        if difference:
            lacking = [
                it.source for it, name in zip(entry.ingredients.inputs, entry.names, strict=True) if name is None
            ]
            message = f"{self.method.name} cannot merge {entry.name} without {lacking[0]}, which lacks it: {difference}"
            self.faults.note(entry.ingredients.path, Fault(message), entry.name)
            raise _Stop


def _reading(entry: Entry, places: Sequence[int]) -> tuple[tuple[Source, str], ...]:
    """The tensors that an entry is made from, by source and name."""
    inputs = entry.ingredients.inputs
    return tuple((inputs[place].source, name) for place in places if (name := entry.names[place]) is not None)
