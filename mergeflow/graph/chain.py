"""How a tensor is made, the whole chain of steps in one line of maths over the names of models.

    slerp(chat, base + ties(0.6 (math - base), 0.4 (code - base); density=0.5); t=0.25)

Sums are written as sums, with the factors that they resolve to; every other method by its name, with the parameters
that are not at their default. A method that takes task vectors shows them, and the base that their merge is added to.
What a method computes on the way (thresholds, angles) is not shown. A step that changes nothing of a tensor is not
seen; one that rounds it is: ``bfloat16(...)``.

The steps are written from the first to the last, each once. Where one's text is longer than `LONGEST`, its name stands
for it: a chain may have thousands of steps, and one that reads a step twice would double the text each time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mergeflow.graph.formula import short
from mergeflow.graph.history import shown_model
from mergeflow.graph.nodes import Graph
from mergeflow.graph.order import steps_in_order
from mergeflow.graph.values import Compiled, Parameters
from mergeflow.graph.within import VOCABULARY, between, node_of, read_by
from mergeflow.methods import registry
from mergeflow.methods.schema import Method, Parameter, Value
from mergeflow.methods.table import METHODS
from mergeflow.methods.task_arithmetic import SMALLEST_DIVISOR
from mergeflow.recipe.cycles import reached
from mergeflow.recipe.records import Recipe, Source, Step, StepReference

LONGEST = 1000
_WITHOUT_EFFECT = "accepted as in mergekit"

Tensor = tuple[Source, str]


@dataclass(frozen=True, slots=True)
class Expression:
    """A piece of the formula. `binds` says how tightly: 3 a name or a call, 2 a product, 1 a sum."""

    text: str
    binds: int = 3

    def inside(self) -> str:
        """As a factor, or behind a minus."""
        return self.text if self.binds == 3 else f"({self.text})"


# What a delta adds to a tensor that it lacks.
ABSENT = Expression("0")


def tensors_on_the_way(recipe: Recipe, compiled: Compiled, last: str, name: str) -> list[tuple[Step, str]]:
    """The tensors of steps that a tensor of the step `last` is made from, it too, each after what it reads."""
    asked: dict[str, dict[str, None]] = {last: {name: None}}
    needed = reached(recipe.steps, [last])
    order = [step for step in steps_in_order(recipe.steps) if step.name in needed]
    for step in reversed(order):
        for tensor in asked.get(step.name, {}):
            for source, read in read_by(step, compiled.results[step.name], tensor):
                if isinstance(source, StepReference):
                    asked.setdefault(source.name, {})[read] = None
    return [(step, tensor) for step in order for tensor in asked.get(step.name, {})]


def chain_formula(recipe: Recipe, compiled: Compiled, way: Sequence[tuple[Step, str]]) -> str:
    """The formula of the last of `way`, which `tensors_on_the_way` gave."""
    work = _Chain(recipe, compiled, {})
    for step, name in way:
        work.made[step.name, name] = work.of(step, name)
    step, name = way[-1]
    return work.made[step.name, name].text


@dataclass
class _Chain:
    """The formulas of the tensors of steps, as far as they are written."""

    recipe: Recipe
    compiled: Compiled
    made: dict[tuple[str, str], Expression]

    def of(self, step: Step, name: str) -> Expression:
        graph, result = self.compiled.graph, self.compiled.results[step.name]
        read = read_by(step, result, name)
        nodes = {node_of(self.compiled, *tensor): tensor for tensor in read}
        node, rounded = result.tensors[name].node, []
        while node not in nodes and graph[node].op == "cast":
            rounded.append(str(graph[node].parameters["dtype"]))
            node = graph[node].inputs[0]
        if node in nodes:
            found = self._name(nodes[node], name)
        else:
            found = self._merged(step, name, read, re_rowed=_has_views(graph, node, nodes))
        for dtype in reversed(rounded):
            found = Expression(f"{dtype}({found.text})")
        return found

    def _name(self, tensor: Tensor, name: str) -> Expression:
        """What stands for a tensor that is read."""
        source, its_name = tensor
        if not isinstance(source, StepReference):
            return Expression(shown_model(self.recipe, source) + _elsewhere(its_name, name))
        made = self.made[source.name, its_name]
        return made if len(made.text) <= LONGEST else Expression(source.name + _elsewhere(its_name, name))

    def _merged(self, step: Step, name: str, read: Sequence[Tensor], *, re_rowed: bool) -> Expression:
        method = registry.find_method(step.merge_method)
        made = self.compiled.results[step.name].parameters[name]
        assert method is not None  # the step compiled
        names = {tensor[0]: self._name(tensor, name) for tensor in read}
        if re_rowed:
            names = {source: Expression(f"{VOCABULARY}({it.text})") for source, it in names.items()}
        if made.ingredients is None or len(made.places) != len(made.inputs):
            return _call(method.name, names.values(), [])
        base = made.ingredients.based(method)
        operands = [
            _Operand(
                names.get(source := made.ingredients.inputs[place].source, ABSENT),
                self._is_delta(source),
                values,
            )
            for place, values in zip(made.places, made.inputs, strict=True)
        ]
        return _applied(method, operands, names.get(base) if base is not None else None, made)

    def _is_delta(self, source: Source) -> bool:
        if isinstance(source, StepReference):
            return self.compiled.results[source.name].type == "delta"
        return source.is_adapter


@dataclass(frozen=True, slots=True)
class _Operand:
    shown: Expression
    is_delta: bool
    values: Mapping[str, Value | None]

    def number(self, name: str) -> float:
        value = self.values.get(name)
        return 1.0 if value is None or isinstance(value, str) else float(value)


def _applied(method: Method, operands: Sequence[_Operand], base: Expression | None, made: Parameters) -> Expression:
    """A method on its operands: a sum, a merge of task vectors added to the base, or a call."""
    factors = _factors(method.name, operands, made.shared)
    if method.name == "add_difference" and base is not None:
        first, second = (operand.shown for operand in operands)
        return _sum([(1.0, base), (_number(made.shared, "alpha"), _sum([(1.0, first), (-1.0, second)]))])
    if method.name == "task_vector" and base is not None:
        return _sum([(1.0, operands[0].shown), (-1.0, base)])
    if factors is not None:
        terms = [(factor, _delta(operand, base)) for factor, operand in zip(factors, operands, strict=True)]
        told = [(factor, it) for factor, it in terms if factor and it is not ABSENT]
        return _sum([(1.0, base), *told] if base is not None else told or terms)
    if base is not None and _adds_to_base(method):
        return _sum([(1.0, base), (1.0, _of_deltas(method, operands, base, made))])
    inputs = [operand.shown for operand in operands]
    if base is not None:
        inputs = [base, *inputs] if method.name in METHODS else [*inputs, base]
    return _call(method.name, inputs, _settings(method, operands, made.shared))


def _factors(name: str, operands: Sequence[_Operand], shared: Mapping[str, Value | None]) -> list[float] | None:
    """The factor of each operand, of the methods that are sums."""
    weights = [operand.number("weight") for operand in operands]
    total = math.fsum(weights)
    match name:
        case "linear":
            return [weight / total for weight in weights] if shared["normalize"] else weights
        case "arithmetic":
            return weights
        case "task_arithmetic":
            divisor = total if shared["normalize"] and abs(total) >= SMALLEST_DIVISOR else 1.0
            return [_number(shared, "lambda") * weight / divisor for weight in weights]
        case "passthrough":
            return [operand.number("scale") for operand in operands]
        case "scale":
            return [_number(shared, "factor")]
        case _:
            return None


def _adds_to_base(method: Method) -> bool:
    """Whether a method merges task vectors and adds them to its base: it takes deltas, and gives weights."""
    return method.base == "optional" or (
        method.name in METHODS and method.base == "required" and "delta" in method.takes and method.gives == "weights"
    )


def _delta(operand: _Operand, base: Expression | None) -> Expression:
    if operand.is_delta or base is None:
        return operand.shown
    return _sum([(1.0, operand.shown), (-1.0, base)])


def _of_deltas(method: Method, operands: Sequence[_Operand], base: Expression, made: Parameters) -> Expression:
    """A method's merge of task vectors. A weight is the factor of its vector, but where it is a share of the way."""
    is_factor = method.base == "required" and any(it.name == "weight" for it in method.parameters)
    there = [it for it in operands if it.shown is not ABSENT] or operands
    taking_part = [it for it in there if not is_factor or it.number("weight") != 0.0]
    inputs = [_sum([(it.number("weight") if is_factor else 1.0, _delta(it, base))]) for it in taking_part]
    settings = _settings(method, taking_part, made.shared, without="weight" if is_factor else "")
    return _call(method.name, inputs, settings)


def _settings(
    method: Method, operands: Sequence[_Operand], shared: Mapping[str, Value | None], without: str = ""
) -> list[str]:
    """The parameters that are not at their default, those of single inputs first."""
    found = []
    for it in method.parameters:
        if it.name == without or it.meaning.startswith(_WITHOUT_EFFECT):
            continue
        values = (
            [shared.get(it.name)] if it.scope == "shared" else [operand.values.get(it.name) for operand in operands]
        )
        if any(_is_told(it, value) for value in values):
            same = all(value == values[0] for value in values)
            found.append((it.scope == "shared", f"{it.name}={short(values[0] if same else values)}"))
    return [text for _, text in sorted(found, key=lambda entry: entry[0])]


def _is_told(parameter: Parameter, value: Value | None) -> bool:
    return value is not None and value != parameter.default


def _call(name: str, inputs: Iterable[Expression], settings: Sequence[str]) -> Expression:
    told = f"; {', '.join(settings)}" if settings else ""
    return Expression(f"{name}({', '.join(it.text for it in inputs)}{told})")


def _sum(terms: Sequence[tuple[float, Expression]]) -> Expression:
    """Terms with their factors, one behind the other."""
    if len(terms) == 1:
        return _product(*terms[0])
    pieces = [_signed(factor, it, is_first=not i) for i, (factor, it) in enumerate(terms)]
    return Expression(" ".join(pieces), 1)


def _product(factor: float, it: Expression) -> Expression:
    return it if factor == 1.0 else Expression(f"{short(factor)} {it.inside()}", 2)


def _signed(factor: float, it: Expression, *, is_first: bool) -> str:
    size = abs(factor)
    # A sum that is the first term needs no parentheses; others are easier to read with them.
    bare = it.text if is_first and factor > 0 else it.inside() if it.binds == 1 else it.text
    text = bare if size == 1.0 else _product(size, it).text
    if factor < 0:
        return f"-{text}" if is_first else f"- {text}"
    return text if is_first else f"+ {text}"


def _number(values: Mapping[str, Value | None], name: str) -> float:
    value = values.get(name)
    return 1.0 if value is None or isinstance(value, str) else float(value)


def _has_views(graph: Graph, node: int, read: Mapping[int, Tensor]) -> bool:
    return any(graph[i].op == VOCABULARY for i in between(graph, node, read.keys()).nodes)


_NUMBERED = re.compile(r"(\w+)\.(\d+)(?=\.|$)")


def _elsewhere(its_name: str, name: str) -> str:
    """What to add to a model's name for a tensor of another name: its layer, where only that is another."""
    if its_name == name:
        return ""
    theirs, mine = (list(_NUMBERED.finditer(it)) for it in (its_name, name))
    if _NUMBERED.sub(r"\1.#", its_name) == _NUMBERED.sub(r"\1.#", name):
        other = [a for a, b in zip(theirs, mine, strict=True) if a[0] != b[0]]
        if len(other) == 1:
            return f":{other[0][0]}"
    return f":{its_name}"
