"""A YAML document as a tree of frozen nodes, each with its place in the file.

    Node ── ScalarNode   value (typed as YAML 1.1 reads it) and the text as written
         ├─ ListNode     items
         ├─ MapNode      entries: key, place of the key, node
         └─ BrokenNode   a value that was reported already: whoever meets one says nothing more

Nodes are what YAML says; records (`records.py`) are what it means.
"""

from __future__ import annotations

from dataclasses import dataclass

from mergeflow.errors import Position
from mergeflow.recipe.nearest import quoted
from mergeflow.recipe.records import Scalar


@dataclass(frozen=True, slots=True)
class ScalarNode:
    """One value. `text` is what was written, for fields that are names: a step may be called ``on`` or ``1e3``."""

    position: Position
    value: Scalar | None
    text: str


@dataclass(frozen=True, slots=True)
class ListNode:
    """A sequence."""

    position: Position
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One field of a mapping."""

    key: str
    key_position: Position
    node: Node


@dataclass(frozen=True, slots=True)
class MapNode:
    """A mapping with text keys, in the order of the file."""

    position: Position
    entries: tuple[Entry, ...]

    def entry(self, key: str) -> Entry | None:
        """The field called `key`, None when it is not written."""
        return next((entry for entry in self.entries if entry.key == key), None)


@dataclass(frozen=True, slots=True)
class BrokenNode:
    """A value that could not be read and was reported."""

    position: Position


Node = ScalarNode | ListNode | MapNode | BrokenNode


def is_null(node: Node) -> bool:
    """Whether nothing (or ``null`` or ``~``) is written."""
    return isinstance(node, ScalarNode) and node.value is None


def is_empty(node: Node) -> bool:
    """Whether mergekit takes the value for absent: null, false, an empty text, list or mapping."""
    match node:
        case ScalarNode(value=value):
            return not value
        case ListNode(items=parts) | MapNode(entries=parts):
            return not parts
        case _:
            return False


def kind_of(node: Node) -> str:
    """What a node is, for messages."""
    match node:
        case ScalarNode(value=None):
            return "nothing"
        case ScalarNode(value=bool(value)):
            return "true" if value else "false"
        case ScalarNode(value=str()):
            return "a text"
        case ScalarNode():
            return "a number"
        case ListNode():
            return "a list"
        case _:
            return "a mapping"


def shown(node: Node) -> str:
    """A node in a message: what was written, else what it is."""
    return quoted(node.text) if isinstance(node, ScalarNode) and node.value is not None else kind_of(node)


def positions(node: Node, path: str = "") -> dict[str, Position]:
    """The place of every value under `node`, by its path: ``models[1].parameters.t``."""
    found = {path: node.position}
    match node:
        case MapNode(entries=entries):
            for entry in entries:
                found |= positions(entry.node, join(path, entry.key))
        case ListNode(items=items):
            for index, item in enumerate(items):
                found |= positions(item, f"{path}[{index}]")
    return found


def join(path: str, key: str) -> str:
    """The path of a field inside the value at `path`."""
    name = key if key.isprintable() else repr(key)[1:-1]  # a path stays on one line
    return f"{path}.{name}" if path else name
