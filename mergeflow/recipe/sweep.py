"""Sweeps: variables with several values, of which every combination is a candidate, a recipe of its own.

    sweep: {density: [0.3, 0.5, 0.7], t: [0.2, 0.4]}      six candidates; density=0.3 first, with each t

- A sweep makes its variables. One that is also under `vars` has the sweep's values instead.
- A value is a number, text or boolean, or a list of such (a gradient is one value): ``t: [[0, 1], [0.5, 1]]``.
- ``--set NAME=a,b,c`` sweeps a variable of `vars`, or gives a swept one other values; ``--set NAME=a`` gives a swept
  one that value alone, and it is swept no more. The values are what they would be in a YAML list: ``'name="a,b"'`` is
  one text, ``t=[0,0.5,1]`` one gradient.
- The first variable changes slowest, in the order of the recipe; those of the command line come last, in its order.
- An output's own `path` is the candidate's where a swept variable stands in it; else its folder lies below it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from mergeflow.errors import Position, Problem
from mergeflow.recipe.document import parse
from mergeflow.recipe.fields import NATIVE_FIELDS, read_fields, read_named
from mergeflow.recipe.findings import Findings
from mergeflow.recipe.nearest import did_you_mean, quoted
from mergeflow.recipe.nodes import BrokenNode, Entry, ListNode, MapNode, Node, ScalarNode, join, kind_of
from mergeflow.recipe.records import Output, Variable
from mergeflow.recipe.variables import (
    NAME,
    NAME_RULE,
    Value,
    Variables,
    checked_value,
    moved,
    plain_value,
    read_override,
)

# A candidate is a whole model: nobody writes so many, and a slip of the pen asks for a million.
MOST_CANDIDATES = 1000

Choice = Mapping[str, Value | BrokenNode]


@dataclass(frozen=True, slots=True)
class Sweep:
    """The swept variables of a recipe, in their order, each with its values.

    Args:
        fixed: variables that only `sweep` has and to which the command line gives one value.
        overrides: what the command line gives the other variables.
        places: where each of the variables stands.
    """

    values: Mapping[str, tuple[Value | BrokenNode, ...]] = field(default_factory=dict)
    fixed: Choice = field(default_factory=dict)
    overrides: Mapping[str, str] = field(default_factory=dict)
    places: Mapping[str, Position] = field(default_factory=dict)

    def choices(self) -> Iterator[Choice]:
        """The swept variables with one value each, every combination; only the first when there are too many."""
        combinations = itertools.product(*self.values.values())
        most = 1 if self.count > MOST_CANDIDATES else None
        for values in itertools.islice(combinations, most):
            yield dict(zip(self.values, values, strict=True))

    @property
    def count(self) -> int:
        return math.prod(map(len, self.values.values()))


@dataclass(frozen=True, slots=True)
class Chosen:
    """What one candidate is: its name (empty where nothing is swept), and the value of each swept variable.

    `fixed` are those of `Sweep`.
    """

    name: str = ""
    values: Choice = field(default_factory=dict)
    fixed: Choice = field(default_factory=dict)
    places: Mapping[str, Position] = field(default_factory=dict)

    @property
    def given(self) -> Choice:
        """Everything whose value does not come from `vars`."""
        return {**self.values, **self.fixed}


def read_sweep(root: MapNode, overrides: Mapping[str, str], findings: Findings) -> Sweep:
    """What of a native recipe is swept, by its own `sweep` and by the command line's settings."""
    fields = read_fields(root, NATIVE_FIELDS, "", Findings(findings.form))  # the recipe's reader reports on them
    written = fields["sweep"].node if "sweep" in fields else None
    variables = fields["vars"].node if "vars" in fields else None
    entries = {} if written is None else {entry.key: entry for entry in _entries(written, findings)}
    defaults = {entry.key: entry for entry in variables.entries} if isinstance(variables, MapNode) else {}

    values: dict[str, tuple[Value | BrokenNode, ...]] = {}
    fixed: dict[str, Value | BrokenNode] = {}
    left = dict(overrides)
    for name, entry in entries.items():
        if name not in overrides:
            values[name] = _read_values(entry.node, join("sweep", name), findings) or (BrokenNode(entry.key_position),)
    places = {name: entry.key_position for name, entry in entries.items()}
    for name, text in overrides.items():
        known = entries.get(name) or defaults.get(name)
        if known is None:
            continue  # an unknown variable, which the reader of `vars` reports
        items = _listed(name, text, known.node.position, findings)
        if items is not None:
            del left[name]
            values[name] = _checked_values(items, join("sweep", name), findings) or (BrokenNode(known.key_position),)
            places.setdefault(name, known.key_position)
        elif name not in defaults:
            del left[name]
            node = read_override(name, text, known.node.position, findings)
            fixed[name] = checked_value(node, join("sweep", name), findings)
    # A swept variable keeps its place in the order, whoever gives it its values.
    order = [*(name for name in entries if name in values), *(name for name in values if name not in entries)]
    sweep = Sweep({name: values[name] for name in order}, fixed, left, places)
    if sweep.count > MOST_CANDIDATES:
        message = f"the sweep has {sweep.count} candidates: {MOST_CANDIDATES} are the most"
        findings.error(message, written.position if written is not None else root.position, "sweep")
    return sweep


def _entries(node: Node, findings: Findings) -> Iterator[Entry]:
    for entry in read_named(node, "sweep", findings):
        if NAME.fullmatch(entry.key):
            yield entry
        else:
            message = f"{quoted(entry.key)} cannot be a variable's name: {NAME_RULE}"
            findings.error(message, entry.key_position, join("sweep", entry.key))


def _read_values(node: Node, path: str, findings: Findings) -> tuple[Value | BrokenNode, ...]:
    if isinstance(node, ListNode):
        return _checked_values(node, path, findings)
    if not isinstance(node, BrokenNode):
        message = f"expected a list of values, found {kind_of(node)}: a value that does not change belongs under 'vars'"
        findings.error(message, node.position, path)
    return ()


def _checked_values(node: ListNode, path: str, findings: Findings) -> tuple[Value | BrokenNode, ...]:
    """The values of a list, each once; what is wrong with them is reported."""
    if not node.items:
        findings.error("the list is empty: a swept variable has at least one value", node.position, path)
    values: list[Value | BrokenNode] = []
    seen: dict[object, int] = {}
    for index, item in enumerate(node.items):
        here = f"{path}[{index}]"
        value = checked_value(item, here, findings)
        if not isinstance(value, BrokenNode):
            if _uses_variables(value):
                findings.error("a swept value cannot use another variable", value.position, here)
                value = BrokenNode(value.position)
            else:
                first = seen.setdefault(_identity(plain_value(value)), index)
                if first != index:
                    findings.error(f"the same value as {path}[{first}]", value.position, here)
        values.append(value)
    return tuple(values)


def _identity(value: Variable) -> object:
    """Equal for what is the same value: 1 and 1.0 are, 1 and true are not."""
    if isinstance(value, tuple):
        return tuple(map(_identity, value))
    return isinstance(value, bool), value


def _uses_variables(value: Value) -> bool:
    scalars = value.items if isinstance(value, ListNode) else (value,)
    return any(isinstance(scalar, ScalarNode) and "${" in scalar.text for scalar in scalars)


def _listed(name: str, text: str, position: Position, findings: Findings) -> ListNode | None:
    """The values of ``--set name=a,b``; None when it is one value."""
    if "," not in text:
        return None
    document = parse(f"[{text}\n]", "--set")
    root = document.root if isinstance(document.root, ListNode) and not document.problems else None
    if root is not None and len(root.items) > 1:
        return ListNode(position, tuple(moved(item, position) for item in root.items))
    alone = parse(text, "--set")
    if isinstance(alone.root, ScalarNode) and (root is None or text.rstrip().endswith(",")):
        message = "values are separated by single commas, and a text with a comma in it stands in quotes"
        findings.error(f"--set {quoted(f'{name}={text}')}: {message}", position)
        return ListNode(position, (BrokenNode(position),))
    return None


def report_unused(chosen: Chosen, variables: Variables, declared: Set[str], findings: Findings) -> None:
    """A swept variable that stands nowhere is a mistyped one, unless `vars` knows it too.

    Args:
        declared: the variables under `vars`.
    """
    for name in chosen.given:
        if name not in variables.used and name not in declared:
            hint = did_you_mean(name, declared - chosen.given.keys(), "variables under 'vars'")
            message = f"no ${{{name}}} stands in the recipe{hint}"
            findings.error(message, chosen.places.get(name), join("sweep", name))


def in_own_folders(
    outputs: Sequence[Output], chosen: Chosen, variables: Variables, node: Node | None
) -> tuple[Output, ...]:
    """The outputs of a candidate, each in a folder that no other candidate has.

    Args:
        node: `outputs` as it is written, with variables in it.
    """
    if not chosen.name:
        return tuple(outputs)
    return tuple(
        output
        if output.path is None or variables.depends_on(_written_path(node, output.step), chosen.values.keys())
        else replace(output, path=f"{output.path.rstrip('/')}/{chosen.name}")
        for output in outputs
    )


def _written_path(node: Node | None, step: str) -> Node:
    entry = node.entry(step) if isinstance(node, MapNode) else None
    if entry is None:  # a mistyped step, reported
        return MapNode(Position("", 1, 1), ())
    path = entry.node.entry("path") if isinstance(entry.node, MapNode) else entry
    return path.node if path is not None else entry.node


def merged_problems(found: Mapping[str, Sequence[Problem]]) -> list[Problem]:
    """The problems of all candidates: one that all have once, as it is; another with the candidate it is of.

    Args:
        found: the problems by the candidate's name.
    """
    owners: dict[Problem, list[str]] = {}
    for name, problems in found.items():
        for problem in dict.fromkeys(problems):
            owners.setdefault(problem, []).append(name)
    return [
        problem if len(names) == len(found) else replace(problem, message=f"{_owners(names)}: {problem.message}")
        for problem, names in owners.items()
    ]


def _owners(names: Sequence[str]) -> str:
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"with {names[0]}{more}"
