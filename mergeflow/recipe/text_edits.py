"""Changes to the text of a YAML document that leave the rest of it, comments too, as it is.

A field is taken out by its path: one that has lines of its own becomes a comment, so that its author can see what had
no effect; one that shares a line is cut out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from mergeflow.recipe.nodes import join

# A text that YAML reads as it stands, in a list in brackets too.
_PLAIN = re.compile(r"[A-Za-z0-9_./~][\w./~@+-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Edit:
    """The characters from `start` to `end` are replaced by `text`."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a mapping as PyYAML sees it: its key, its value, and the mapping with the key's place in it."""

    path: str
    key: Any
    value: Any
    mapping: Any
    index: int


def compose(text: str) -> list[Any]:
    """PyYAML's nodes of the documents of a text that was read before (so that it is no danger), without empty ones."""
    # The loader that reads recipes: the two of PyYAML do not agree on every odd text.
    nodes = yaml.compose_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return [node for node in nodes if node is not None and node.tag != "tag:yaml.org,2002:null"]


def fields(node: Any, path: str = "") -> Iterator[Field]:
    """Every field under a node, each mapping's in the order of the text."""
    if isinstance(node, yaml.MappingNode):
        for index, (key, value) in enumerate(node.value):
            here = join(path, str(key.value))
            yield Field(here, key, value, node, index)
            yield from fields(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from fields(item, f"{path}[{index}]")


def without(text: str, root: Any, paths: Collection[str]) -> list[Edit]:
    """The edits that take the fields at `paths` out of a document; of a key written twice, only the last is kept."""
    found = list(fields(root))
    last = {(id(field.mapping), str(field.key.value)): field.index for field in found}
    gone = [
        field for field in found if field.path in paths or last[id(field.mapping), str(field.key.value)] != field.index
    ]
    edits: list[Edit] = []
    for field in gone:
        if any(edit.start <= field.key.start_mark.index < edit.end for edit in edits):
            continue  # it goes with what it is part of
        edits += _removal(text, field, gone)
    return edits


def _removal(text: str, field: Field, gone: list[Field]) -> list[Edit]:
    start, end = field.key.start_mark.index, _end(field.value)
    line = text.rfind("\n", 0, start) + 1
    if not field.mapping.flow_style and not text[line:start].strip():
        stop = text.find("\n", end)
        lines = text[start : stop if stop >= 0 else len(text)].split("\n")
        indent = " " * (start - line)
        commented = "\n".join(["# " + lines[0], *(f"{indent}# {rest.removeprefix(indent)}" for rest in lines[1:])])
        return [Edit(start, stop if stop >= 0 else len(text), commented)]
    left = [number for number in range(len(field.mapping.value)) if not _is_gone(field.mapping, number, gone)]
    behind = next((number for number in left if number > field.index), None)
    before = next((number for number in reversed(left) if number < field.index), None)
    if behind is not None:
        return [Edit(start, field.mapping.value[behind][0].start_mark.index, "")]
    if before is not None:
        return [Edit(_end(field.mapping.value[before][1]), end, "")]
    return [Edit(start, end, "" if field.mapping.flow_style else "{}")] if field.index == 0 else []


def _is_gone(mapping: Any, index: int, gone: list[Field]) -> bool:
    return any(field.mapping is mapping and field.index == index for field in gone)


def _end(node: Any) -> int:
    """Behind the last character of a value; PyYAML's mark of a block collection is at what comes after it."""
    if isinstance(node, yaml.ScalarNode) or node.flow_style or not node.value:
        return int(node.end_mark.index)
    last = node.value[-1]
    return _end(last[1] if isinstance(last, tuple) else last)


def replaced(text: str, node: Any, value: str) -> Edit:
    """The edit that gives a scalar another text."""
    raw = text[node.start_mark.index : node.end_mark.index]
    anchor = re.match(r"[&!]\S*\s+", raw)
    start = node.start_mark.index + (anchor.end() if anchor else 0)
    return Edit(start, node.end_mark.index, value if _PLAIN.fullmatch(value) else json.dumps(value))


def apply(text: str, edits: list[Edit]) -> str:
    """The text with the edits, none of which overlaps another (the second of two at one place is left out)."""
    end = len(text) + 1
    for edit in sorted(set(edits), key=lambda edit: (edit.start, edit.end), reverse=True):
        if edit.end <= end:
            text = text[: edit.start] + edit.text + text[edit.end :]
            end = edit.start
    return text
