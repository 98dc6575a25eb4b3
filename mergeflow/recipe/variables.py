"""Variables: values of `vars`, overridden by ``--set``, put in place of ``${name}``.

- A value that is ``${name}`` and nothing else becomes the variable's value, with its type; it may be a list.
- Inside a longer text the variable stands as it was written; it must be a single value.
- ``$${`` is a plain ``${``.
- A variable may use those above it. Keys are never touched: names are names.
- A swept variable (`sweep.py`) has one value in each candidate, in place of that under `vars` when there is one. It
  stands above all of `vars`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Set
from types import MappingProxyType

from mergeflow.errors import Position
from mergeflow.recipe.document import parse
from mergeflow.recipe.fields import read_named
from mergeflow.recipe.findings import Findings
from mergeflow.recipe.nearest import did_you_mean, nearest, quoted
from mergeflow.recipe.nodes import (
    BrokenNode,
    Entry,
    ListNode,
    MapNode,
    Node,
    ScalarNode,
    is_null,
    join,
    kind_of,
)
from mergeflow.recipe.records import Scalar, Variable

NAME = re.compile(r"\w[\w.-]*")
NAME_RULE = "letters, digits, '_', '-' and '.' only"
# `${name}`, an escaped `$${`, or a `${` without its end. No part can match twice, so the scan is linear.
_USE = re.compile(r"\$\$\{|\$\{([^{}$\n]*)\}|\$\{")
# Variables that double one another must not fill the memory.
LONGEST = 10_000

Value = ScalarNode | ListNode
NONE_GIVEN: Mapping[str, Value | BrokenNode] = MappingProxyType({})


class Variables:
    """The variables of one recipe; `used` grows as they are put in place."""

    def __init__(self, findings: Findings, given: Mapping[str, Value | BrokenNode] = NONE_GIVEN) -> None:
        self.values: dict[str, Value | BrokenNode] = dict(given)
        self.used: set[str] = set()
        self.findings = findings
        self._made_of: dict[str, set[str]] = {name: {name} for name in given}

    def plain(self) -> dict[str, Variable]:
        """The values, without their places."""
        return {name: plain_value(node) for name, node in self.values.items() if not isinstance(node, BrokenNode)}

    def depends_on(self, node: Node, names: Set[str]) -> bool:
        """Whether one of `names` stands somewhere under `node` (as it is written), itself or inside another."""
        return any(self._made_of.get(name, set()) & names for name in _names_under(node))

    def define(self, name: str, written: Node, path: str) -> None:
        """Give a variable the value that is written, with the variables above it filled in."""
        self._made_of[name] = {name}.union(*(self._made_of.get(inner, set()) for inner in _names_under(written)))
        self.values[name] = checked_value(self.fill(written, path), path, self.findings)

    def fill(self, node: Node, path: str) -> Node:
        """`node` with every ``${name}`` under it replaced; what cannot be replaced is reported and broken."""
        match node:
            case ScalarNode(value=str(text)) if "${" in text:
                return self._fill_text(node, text, path)
            case ListNode(items=items):
                filled = (self.fill(item, f"{path}[{index}]") for index, item in enumerate(items))
                return ListNode(node.position, tuple(filled))
            case MapNode(entries=entries):
                return MapNode(node.position, tuple(self._fill_entry(entry, path) for entry in entries))
            case _:
                return node

    def _fill_entry(self, entry: Entry, path: str) -> Entry:
        return Entry(entry.key, entry.key_position, self.fill(entry.node, join(path, entry.key)))

    def _fill_text(self, node: ScalarNode, text: str, path: str) -> Node:
        whole = _USE.fullmatch(text)
        if whole is not None and whole[1] is not None:
            value = self._look_up(whole[1], node.position, path)
            return moved(value, node.position)
        pieces: list[str] = []
        end = 0
        for use in _USE.finditer(text):
            piece = self._piece(use, node.position, path)
            if piece is None:
                return BrokenNode(node.position)
            pieces += [text[end : use.start()], piece]
            end = use.end()
        result = "".join([*pieces, text[end:]])
        if len(result) > LONGEST:
            self.findings.error(f"the text is longer than {LONGEST} characters", node.position, path)
            return BrokenNode(node.position)
        return ScalarNode(node.position, result, result)

    def _piece(self, use: re.Match[str], position: Position, path: str) -> str | None:
        """What stands for one ``${...}`` inside a longer text."""
        if use[0] == "$${":
            return "${"
        if use[1] is None:
            self.findings.error("'${' has no '}' after its name (a plain '${' is written '$${')", position, path)
            return None
        value = self._look_up(use[1], position, path)
        if isinstance(value, ListNode):
            message = f"the variable {quoted(use[1])} is a list: it can stand alone, not inside a longer text"
            self.findings.error(message, position, path)
        return value.text if isinstance(value, ScalarNode) else None

    def _look_up(self, name: str, position: Position, path: str) -> Value | BrokenNode:
        name = name.strip()
        if name not in self.values:
            hint = did_you_mean(name, self.values, "variables")
            self.findings.error(f"unknown variable {quoted(name)}{hint}", position, path)
            guess = nearest(name, self.values)
            if guess is None:
                return BrokenNode(position)
            name = guess
        self.used.add(name)
        return self.values[name]


def read_variables(
    node: Node | None,
    overrides: Mapping[str, str],
    findings: Findings,
    given: Mapping[str, Value | BrokenNode] = NONE_GIVEN,
) -> Variables:
    """The variables of a recipe's `vars`, with those on the command line in place of the written ones.

    Args:
        given: the values that swept variables have in this candidate.
    """
    variables = Variables(findings, given)
    entries = () if node is None else read_named(node, "vars", findings)
    for entry in entries:
        path = join("vars", entry.key)
        if not NAME.fullmatch(entry.key):
            message = f"{quoted(entry.key)} cannot be a variable's name: {NAME_RULE}"
            findings.error(message, entry.key_position, path)
        elif entry.key not in given:
            text = overrides.get(entry.key)
            position = entry.node.position
            variables.define(
                entry.key, entry.node if text is None else read_override(entry.key, text, position, findings), path
            )
    for name, text in overrides.items():
        if not any(entry.key == name for entry in entries):
            hint = did_you_mean(name, variables.values, "variables")
            message = f"--set {quoted(f'{name}={text}')}: the recipe has no variable {quoted(name)}{hint}"
            findings.error(message, None if node is None else node.position)
    return variables


def warn_of_unused(variables: Variables, node: Node | None, findings: Findings) -> None:
    """A variable that stands nowhere is probably one that was meant to."""
    for entry in node.entries if isinstance(node, MapNode) else ():
        if entry.key in variables.values and entry.key not in variables.used:
            message = f"the variable {quoted(entry.key)} is never used"
            findings.warning(message, entry.key_position, join("vars", entry.key))


def read_override(name: str, text: str, position: Position, findings: Findings) -> Node:
    """The value of ``--set name=text``, read as YAML; it takes the place of the written one."""
    document = parse(text, "--set")
    for problem in (*document.problems, *document.duplicates):
        findings.error(f"--set {quoted(f'{name}={text}')}: {problem.message}", position, join("vars", name))
    if document.problems:
        return BrokenNode(position)
    root = document.root if document.root is not None else ScalarNode(position, None, "")
    return moved(root, position)


def moved(node: Node, position: Position) -> Node:
    """The same value, as if all of it stood at `position`: a mistake in it shows where it is used."""
    match node:
        case ScalarNode():
            return ScalarNode(position, node.value, node.text)
        case ListNode():
            return ListNode(position, tuple(moved(item, position) for item in node.items))
        case MapNode():
            return MapNode(position, node.entries)
        case _:
            return BrokenNode(position)


def checked_value(node: Node, path: str, findings: Findings) -> Value | BrokenNode:
    """A variable's value, which must be a value or a list of values."""
    rule = "a variable is a value or a list of values"
    match node:
        case ScalarNode() if is_null(node):
            findings.error(f"no value: {rule}", node.position, path)
        case ScalarNode():
            return node
        case ListNode(items=items):
            wrong = [item for item in items if not isinstance(item, ScalarNode) or is_null(item)]
            if not wrong:
                return node
            if not isinstance(wrong[0], BrokenNode):
                findings.error(f"{kind_of(wrong[0])} in a list: {rule}", wrong[0].position, path)
        case MapNode():
            findings.error(f"expected a value, found a mapping: {rule}", node.position, path)
        case _:
            pass
    return BrokenNode(node.position)


def plain_value(node: Value) -> Variable:
    """A variable's value, without its place."""
    if isinstance(node, ListNode):
        return tuple(_plain_scalar(item) for item in node.items)
    return _plain_scalar(node)


def _plain_scalar(node: Node) -> Scalar:
    # A null was refused by `checked_value`.
    return node.value if isinstance(node, ScalarNode) and node.value is not None else ""


def _names_under(node: Node) -> Iterator[str]:
    """The variables that stand in the texts under `node`."""
    match node:
        case ScalarNode(value=str(text)):
            yield from (use[1].strip() for use in _USE.finditer(text) if use[1] is not None)
        case ListNode(items=items):
            for item in items:
                yield from _names_under(item)
        case MapNode(entries=entries):
            for entry in entries:
                yield from _names_under(entry.node)
        case _:
            return
