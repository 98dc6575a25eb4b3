"""YAML text becomes trees of nodes, one for each document, safely.

No object is ever built from a tag, and no text can exhaust the machine.

PyYAML's parser (libyaml's, when PyYAML was built with it) turns text into events; the tree is put together here
rather than by PyYAML's composer, which

- recurses in C, so that ten thousand opening brackets end the process: nesting is limited here;
- lets aliases of aliases multiply (ten lines can name a billion values): the expanded size is limited here;
- silently keeps the last of two equal keys: both are known here;
- would build dates and sets: here a value is null, a boolean, a number or a text, as YAML 1.1 types plain scalars.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import yaml

from mergeflow.errors import Position, Problem
from mergeflow.recipe.nearest import quoted
from mergeflow.recipe.nodes import BrokenNode, Entry, ListNode, MapNode, Node, ScalarNode, is_null, join
from mergeflow.recipe.records import Scalar

# A recipe nests eight deep and a thousand steps are 20,000 values; these are far above what anyone writes.
DEEPEST = 50
MOST_VALUES = 100_000

# No number is written with more characters; YAML 1.1's base 60 would take minutes over a very long one.
LONGEST_NUMBER = 100

_TAG = "tag:yaml.org,2002:"
_SAFE_TAGS = frozenset(_TAG + name for name in ("str", "int", "float", "bool", "null", "map", "seq", "timestamp"))
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")
_NO_CHARACTERS = "\ufffe\uffff"


@dataclass(frozen=True, slots=True)
class Document:
    """What a YAML text holds.

    `root` is None when there is nothing to read: then `problems` says why. `duplicates` are keys written twice in
    one mapping; the last one counts, as in PyYAML.
    """

    root: Node | None
    problems: tuple[Problem, ...] = ()
    duplicates: tuple[Problem, ...] = ()


def parse(text: str, file: str) -> Document:
    """Reads YAML of one document; `file` names it in positions. Never raises: what is wrong is in the result."""
    first, *others = parse_documents(text, file)
    if others and others[0].root is not None:
        message = "one value is expected here, and there are several documents"
        return Document(None, (Problem(message, others[0].root.position),))
    return first


def parse_documents(text: str, file: str) -> tuple[Document, ...]:
    """As `parse`, for a text of several documents, separated by ``---``; at least one. Empty ones are left out.

    Where there are several, the paths of problems start with ``documents[1]``.
    """
    strange = _first_unprintable(text)
    if strange is not None:
        message = f"not YAML: the character {text[strange]!a} is not allowed"
        return (Document(None, (Problem(message, position_of(text, strange, file)),)),)
    composer = _Composer(file)
    try:
        documents = list(composer.compose(text))
    except yaml.YAMLError as error:
        return (Document(None, (_syntax_problem(error, text, file),)),)
    except _Refused as refused:
        return (Document(None, (refused.problem,)),)
    written = [document for document in documents if document.root is not None and not is_null(document.root)]
    if len(written) > 1:
        return tuple(_numbered(document, index) for index, document in enumerate(written))
    return tuple(written or documents[:1]) or (Document(None),)


def document_path(index: int) -> str:
    """The path of a document in a file of several."""
    return f"documents[{index}]"


def _numbered(document: Document, index: int) -> Document:
    problems = (_within(problem, index) for problem in document.problems)
    duplicates = (_within(problem, index) for problem in document.duplicates)
    return Document(document.root, tuple(problems), tuple(duplicates))


def _within(problem: Problem, index: int) -> Problem:
    path = document_path(index)
    return replace(problem, path=join(path, problem.path) if problem.path else path)


def _first_unprintable(text: str) -> int | None:
    """The offset of a character that YAML refuses.

    In three parts, since one pattern for all of Unicode takes longer to compile than a recipe takes to read.
    """
    if control := _CONTROL.search(text):
        return control.start()
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair
        return error.start
    return min((text.index(character) for character in _NO_CHARACTERS if character in text), default=None)


def position_of(text: str, offset: int, file: str) -> Position:
    """The place of the character at `offset`."""
    before = text[:offset]
    return Position(file, before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1)


def _syntax_problem(error: yaml.YAMLError, text: str, file: str) -> Problem:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return Problem(f"not YAML: {' '.join(str(error).split())}", Position(file, 1, 1))
    mark = error.problem_mark
    context = f" {error.context}" if error.context else ""
    lines = text.split("\n")
    # At the end of a text without a last newline, libyaml points at a line that is not there.
    number, column = (mark.line, mark.column) if mark.line < len(lines) else (len(lines) - 1, len(lines[-1]))
    line = lines[number]
    hint = ""
    if "${" in line:
        hint = '; inside { } or [ ], a variable is written in quotes: "${name}"'
    elif "\t" in line:
        hint = "; YAML is indented with spaces, never with tabs"
    return Problem(f"not YAML:{context}: {error.problem}{hint}", Position(file, number + 1, column + 1))


class _Refused(Exception):
    """The document is not one a recipe can be; nothing of it is read."""

    def __init__(self, message: str, position: Position) -> None:
        self.problem = Problem(message, position)


@dataclass(frozen=True, slots=True)
class _Sized:
    """A node, and how many values it holds once its aliases are written out."""

    node: Node
    size: int


class _Composer:
    """Puts nodes together from the events of a text; `values` counts those of the documents before."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.values = 0
        self.problems: list[Problem] = []
        self.duplicates: list[Problem] = []
        self.anchors: dict[str, _Sized] = {}
        self.resolver: Any = yaml.resolver.Resolver()
        self.constructor = yaml.constructor.SafeConstructor()

    def compose(self, text: str) -> Iterator[Document]:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        events: Iterator[Any] = yaml.parse(text, Loader=loader)
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                self.problems, self.duplicates, self.anchors = [], [], {}
                root = self._node(next(events), events, "", 0)
                self.values += root.size
                yield Document(root.node, tuple(self.problems), tuple(self.duplicates))

    def _place(self, event: Any) -> Position:
        return Position(self.file, event.start_mark.line + 1, event.start_mark.column + 1)

    def _node(self, event: Any, events: Iterator[Any], path: str, depth: int) -> _Sized:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        if depth > DEEPEST:
            raise _Refused(f"values are nested more than {DEEPEST} deep", self._place(event))
        if isinstance(event, yaml.ScalarEvent):
            built = _Sized(self._scalar(event, path), 1)
        elif isinstance(event, yaml.SequenceStartEvent):
            built = self._list(event, events, path, depth)
        else:
            built = self._map(event, events, path, depth)
        if event.tag and event.tag not in _SAFE_TAGS and event.tag != "!":
            built = _Sized(self._refuse_tag(event, path), built.size)
        if self.values + built.size > MOST_VALUES:
            raise _Refused(f"more than {MOST_VALUES} values, aliases written out", self._place(event))
        if event.anchor:
            self.anchors[event.anchor] = built
        return built

    def _alias(self, event: Any) -> _Sized:
        if event.anchor not in self.anchors:
            message = f"not YAML: no value above is marked {quoted('&' + event.anchor)}"
            raise _Refused(message, self._place(event))
        return self.anchors[event.anchor]

    def _refuse_tag(self, event: Any, path: str) -> BrokenNode:
        name = event.tag.replace(_TAG, "!!")
        message = f"the tag {quoted(name)} is not allowed: a recipe holds texts, numbers, lists and mappings only"
        self.problems.append(Problem(message, self._place(event), path))
        return BrokenNode(self._place(event))

    def _scalar(self, event: Any, path: str) -> Node:
        position, text = self._place(event), event.value
        tag = event.tag
        if tag is None or tag == "!":
            tag = self.resolver.resolve(yaml.ScalarNode, text, event.implicit)
        try:
            return ScalarNode(position, self._value(tag, text), text)
        except (ValueError, KeyError, IndexError, OverflowError):
            if not event.tag:
                return ScalarNode(position, text, text)
        message = f"{quoted(text)} is not what its tag {quoted(event.tag.replace(_TAG, '!!'))} says"
        self.problems.append(Problem(message, position, path))
        return BrokenNode(position)

    def _value(self, tag: str, text: str) -> Scalar | None:
        """The value of a scalar by YAML 1.1, as PyYAML (and so mergekit) reads it."""
        node = yaml.ScalarNode(tag, text)
        if len(text) > LONGEST_NUMBER:
            return text
        match tag.removeprefix(_TAG):
            case "null":
                return None
            case "bool":
                return bool(self.constructor.construct_yaml_bool(node))
            case "int":
                return int(self.constructor.construct_yaml_int(node))
            case "float":
                return float(self.constructor.construct_yaml_float(node))
            case _:
                return text

    def _list(self, event: Any, events: Iterator[Any], path: str, depth: int) -> _Sized:
        items: list[Node] = []
        size = 1
        while not isinstance(following := next(events), yaml.SequenceEndEvent):
            item = self._node(following, events, f"{path}[{len(items)}]", depth + 1)
            items.append(item.node)
            size += item.size
        return _Sized(ListNode(self._place(event), tuple(items)), size)

    def _map(self, event: Any, events: Iterator[Any], path: str, depth: int) -> _Sized:
        own: dict[str, Entry] = {}
        merged: dict[str, Entry] = {}
        size = 1
        while not isinstance(following := next(events), yaml.MappingEndEvent):
            key, is_merge = self._key(following, events, path, depth)
            value = self._node(next(events), events, join(path, key or "?"), depth + 1)
            size += value.size
            position = self._place(following)
            if is_merge:
                merged |= self._merge(value.node, path)
            elif key is not None:
                self._note_duplicate(own.get(key), key, position, path)
                own.pop(key, None)
                own[key] = Entry(key, position, value.node)
        entries = {name: entry for name, entry in merged.items() if name not in own} | own
        return _Sized(MapNode(self._place(event), tuple(entries.values())), size)

    def _key(self, event: Any, events: Iterator[Any], path: str, depth: int) -> tuple[str | None, bool]:
        """The text of a key, and whether it is ``<<``, which merges other mappings in."""
        if isinstance(event, yaml.ScalarEvent):
            is_merge = event.tag is None and event.implicit[0] and event.value == "<<"
            if event.anchor:
                self.anchors[event.anchor] = _Sized(self._scalar(event, path), 1)
            return event.value, is_merge
        node = self._node(event, events, path, depth + 1).node
        if isinstance(node, ScalarNode):
            return node.text, False
        self.problems.append(Problem("a key is a name, not a list or a mapping", self._place(event), path))
        return None, False

    def _note_duplicate(self, first: Entry | None, key: str, position: Position, path: str) -> None:
        if first is not None:
            where = f"line {first.key_position.line}"
            message = f"{quoted(key)} is written twice (first in {where}); only the last one counts"
            self.duplicates.append(Problem(message, position, join(path, key)))

    def _merge(self, node: Node, path: str) -> dict[str, Entry]:
        """The fields that ``<<`` brings in; of several mappings, the first that has a field decides."""
        sources = node.items if isinstance(node, ListNode) else (node,)
        fields: dict[str, Entry] = {}
        for source in sources:
            if isinstance(source, MapNode):
                fields = {entry.key: entry for entry in source.entries} | fields
            elif not isinstance(source, BrokenNode):
                message = "'<<' merges a mapping, or a list of mappings, into this one"
                self.problems.append(Problem(message, source.position, join(path, "<<")))
        return fields
