"""A recipe of one step from Python values, and its problems in the words of a call instead of a file.

Values are read by the reader of recipes, so that a gradient or a filter means the same and a mistake is the same. What
has no place in a file is told by the argument it came in: ``parameters.t``, ``model_parameters['math'].weight``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mergeflow.errors import Position, Problem, Severity
from mergeflow.recipe.findings import Findings
from mergeflow.recipe.nodes import BrokenNode, Entry, ListNode, MapNode, Node, ScalarNode
from mergeflow.recipe.parameters import read_parameters
from mergeflow.recipe.records import Input, ModelReference, Parameters, Recipe, Step

STEP = "merge"
Values = Mapping[str, object]

_NOWHERE = Position("", 1, 1)
_OF_A_MODEL = re.compile(r"models\[(\d+)\]\.(model|parameters)(.*)")


@dataclass(frozen=True, slots=True)
class Asked:
    """One merge, as it was asked for.

    Args:
        models: the names of the inputs, in order.
        base: the name of the base; None for no base.
        model_parameters: the parameters of single models, by their names.
    """

    method: str
    models: tuple[str, ...]
    base: str | None = None
    parameters: Values = field(default_factory=dict)
    model_parameters: Mapping[str, Values] = field(default_factory=dict)
    dtype: str | None = None
    seed: int = 0


def recipe_of(asked: Asked) -> Recipe:
    """The recipe that says the same; `problems` are those of the parameters' values."""
    findings = Findings("native")
    own = [
        _read(asked.model_parameters.get(name, {}), f"models[{place}].parameters", findings)
        for place, name in enumerate(asked.models)
    ]
    inputs = tuple(Input(ModelReference(name), values) for name, values in zip(asked.models, own, strict=True))
    step = Step(
        name=STEP,
        merge_method=asked.method,
        inputs=inputs,
        base=None if asked.base is None else ModelReference(asked.base),
        parameters=_read(asked.parameters, "parameters", findings),
        dtype=asked.dtype,
    )
    return Recipe("", "", "native", Path(), (step,), (), seed=asked.seed, problems=tuple(findings.problems))


def told(problems: Iterable[Problem], asked: Asked, severity: Severity) -> list[str]:
    """Each problem of a severity as one line, with the argument it is about."""
    return [_line(problem, asked.models) for problem in problems if problem.severity == severity]


def _line(problem: Problem, models: Sequence[str]) -> str:
    path = problem.path.removeprefix(f"steps.{STEP}").removeprefix(".")
    match = _OF_A_MODEL.fullmatch(path)
    if match and match[2] == "parameters":
        path = f"model_parameters[{models[int(match[1])]!r}]{match[3]}"
    elif match or path in ("base_model", "merge_method", "models"):
        path = ""  # the message names them
    message = problem.message.replace("base_model", "base")
    return f"{path}: {message}" if path else message


def _read(values: Values, path: str, findings: Findings) -> Parameters:
    present = {name: value for name, value in values.items() if value is not None}
    return read_parameters(_node(present, path, findings), path, findings)


def _node(value: object, path: str, findings: Findings) -> Node:
    """A Python value as the reader would have got it from a file."""
    if hasattr(value, "tolist"):
        value = value.tolist()  # of numpy and torch
    match value:
        case Mapping():
            entries = (Entry(str(k), _NOWHERE, _node(v, f"{path}.{k}", findings)) for k, v in value.items())
            return MapNode(_NOWHERE, tuple(entries))
        case list() | tuple():
            return ListNode(_NOWHERE, tuple(_node(item, f"{path}[{i}]", findings) for i, item in enumerate(value)))
        case None | bool() | int() | float() | str():
            return ScalarNode(_NOWHERE, value, str(value))
        case _:
            findings.error(f"a {type(value).__name__} is no value of a parameter", None, path)
            return BrokenNode(_NOWHERE)
