"""Patterns from strangers, matched in time that grows with their length only.

An adapter's `rank_pattern` and `alpha_pattern` have regular expressions as keys, and Python's own matcher can be made
to run for years by a few characters (``(a+)+$``). What adapters write is a small part of its language, and that part
needs no backtracking:

    literals   .   \\.   \\d \\w \\s (and \\D \\W \\S)   [abc]  [^a-z]   (..)  (?:..)   a|b   * + ? {m} {m,n}   ^ $

A pattern becomes a list of steps, and all the ways through it are followed at once (Thompson 1968), a character at a
time: length of the text times length of the list, whatever the pattern is. Anything else (look-around, references to
groups) is refused by name. Lazy repetitions mean the same as greedy ones, where all that is asked is whether it
matches.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable
from dataclasses import dataclass

MAX_PATTERN = 1000
MAX_STEPS = 5000
MAX_DEPTH = 30

_WORD = frozenset(string.ascii_letters + string.digits + "_")
_CLASSES: dict[str, frozenset[str]] = {
    "d": frozenset(string.digits),
    "w": _WORD,
    "s": frozenset(" \t\n\r\f\v"),
}
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v"}


@dataclass(frozen=True, slots=True)
class _Chars:
    """One character out of a set, or (`negated`) out of all others."""

    chars: frozenset[str]
    negated: bool = False

    def matches(self, char: str) -> bool:
        return (char in self.chars) != self.negated


_ANY = _Chars(frozenset("\n"), negated=True)


@dataclass(frozen=True, slots=True)
class _Sequence:
    parts: tuple[_Part, ...]


@dataclass(frozen=True, slots=True)
class _Choice:
    options: tuple[_Part, ...]


@dataclass(frozen=True, slots=True)
class _Repeat:
    part: _Part
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class _Edge:
    """``^`` or ``$``."""

    at_end: bool


_Part = _Chars | _Sequence | _Choice | _Repeat | _Edge


@dataclass(frozen=True, slots=True)
class _Step:
    """Take a character (`chars`), or go on to each of `goes` (when `edge` is met, if there is one)."""

    chars: _Chars | None = None
    edge: _Edge | None = None
    goes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Pattern:
    """A regular expression of the part described above."""

    text: str
    _steps: tuple[_Step, ...]

    def matches(self, name: str, start: int = 0) -> bool:
        """Whether the pattern matches all of `name` from index `start` on. ``^`` is met at index 0 only."""
        here = self._reached([0], name, start)
        for index in range(start, len(name)):
            taken = [i + 1 for i in here if self._takes(i, name[index])]
            if not taken:
                return False
            here = self._reached(taken, name, index + 1)
        return len(self._steps) in here

    def _takes(self, i: int, char: str) -> bool:
        chars = self._steps[i].chars if i < len(self._steps) else None
        return chars is not None and chars.matches(char)

    def _reached(self, starts: Iterable[int], name: str, index: int) -> set[int]:
        """The steps that can be taken next, with no character between; one past the last when the pattern may end."""
        found: set[int] = set()
        waiting = list(starts)
        while waiting:
            i = waiting.pop()
            if i in found:
                continue
            found.add(i)
            if i == len(self._steps) or self._steps[i].chars is not None:
                continue
            edge = self._steps[i].edge
            if edge is None or index == (len(name) if edge.at_end else 0):
                waiting.extend(i + go for go in self._steps[i].goes)
        return found


def parse_pattern(text: str) -> Pattern:
    """The pattern a regular expression stands for.

    Raises:
        ValueError: it is none, it is too long, or it has parts that this matcher does not know.
    """
    if len(text) > MAX_PATTERN:
        raise ValueError(f"a pattern of {len(text)} characters is longer than any that is meant")
    return Pattern(text, tuple(_steps(_Parser(text).parse())))


def _steps(part: _Part) -> list[_Step]:
    """A part as steps; where a step goes is counted from its own place."""
    found = _STEPS[type(part)](part)
    if len(found) > MAX_STEPS:
        raise ValueError("repetitions make the pattern longer than any that is meant")
    return found


def _steps_of_sequence(part: _Sequence) -> list[_Step]:
    found: list[_Step] = []
    for inner in part.parts:
        found += _steps(inner)
        if len(found) > MAX_STEPS:
            break
    return found


def _steps_of_choice(part: _Choice) -> list[_Step]:
    *others, last = part.options
    found = _steps(last)
    for option in reversed(others):
        first = _steps(option)
        found = [_Step(goes=(1, len(first) + 2)), *first, _Step(goes=(len(found) + 1,)), *found]
    return found


def _steps_of_repeat(part: _Repeat) -> list[_Step]:
    once = _steps(part.part)
    copies = max(part.least, part.most or 0, 1)
    if len(once) * copies > MAX_STEPS:
        raise ValueError("repetitions make the pattern longer than any that is meant")
    if part.most is None:
        # X* and the last X of X{n,}: back to the step that may leave.
        loop = [_Step(goes=(1, len(once) + 2)), *once, _Step(goes=(-len(once) - 1,))]
        return once * part.least + loop
    maybe: list[_Step] = []
    for _ in range(part.most - part.least):
        maybe = [_Step(goes=(1, len(once) + len(maybe) + 1)), *once, *maybe]
        if len(maybe) > MAX_STEPS:
            raise ValueError("repetitions make the pattern longer than any that is meant")
    return once * part.least + maybe


_STEPS: dict[type, Callable[..., list[_Step]]] = {
    _Chars: lambda part: [_Step(chars=part)],
    _Edge: lambda part: [_Step(edge=part, goes=(1,))],
    _Sequence: _steps_of_sequence,
    _Choice: _steps_of_choice,
    _Repeat: _steps_of_repeat,
}


class _Parser:
    """Reads one pattern, left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0

    def parse(self) -> _Part:
        part = self._choice()
        if self._at < len(self._text):
            raise ValueError("a ')' closes nothing")
        return part

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self) -> str:
        char = self._peek()
        if not char:
            raise ValueError("the pattern ends too early")
        self._at += 1
        return char

    def _choice(self) -> _Part:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError("groups are nested too deeply")
        options = [self._sequence()]
        while self._peek() == "|":
            self._take()
            options.append(self._sequence())
        self._depth -= 1
        return options[0] if len(options) == 1 else _Choice(tuple(options))

    def _sequence(self) -> _Part:
        parts: list[_Part] = []
        while self._peek() not in ("", "|", ")"):
            parts.append(self._repeated(self._atom()))
        return _Sequence(tuple(parts))

    def _repeated(self, part: _Part) -> _Part:
        bounds = self._bounds()
        if bounds is None:
            return part
        if isinstance(part, _Edge):
            raise ValueError("a '^' or '$' cannot be repeated")
        if self._peek() == "?":  # lazy
            self._take()
        elif self._peek() in ("*", "+"):
            raise ValueError("repetitions of repetitions are not read")
        return _Repeat(part, *bounds)

    def _bounds(self) -> tuple[int, int | None] | None:
        char = self._peek()
        if char and char in "*+?":
            self._take()
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
        if char != "{":
            return None
        end = self._text.find("}", self._at)
        low, comma, high = self._text[self._at + 1 : end].partition(",")
        if end < 0 or not _is_count(low) or not (_is_count(high) or high == ""):
            raise ValueError("a '{' was expected to give a number of repetitions, as {2} or {2,4}")
        self._at = end + 1
        least = int(low)
        most = int(high) if high else None if comma else least
        if most is not None and most < least:
            raise ValueError("a repetition ends below where it begins")
        return least, most

    def _atom(self) -> _Part:
        char = self._take()
        if char == "(":
            return self._group()
        if char == "[":
            return self._set()
        if char == ".":
            return _ANY
        if char in "^$":
            return _Edge(at_end=char == "$")
        if char == "\\":
            return self._escape()
        if char in "*+?{":
            raise ValueError(f"nothing stands before {char!r}")
        return _Chars(frozenset(char))

    def _group(self) -> _Part:
        if self._peek() == "?":
            if not self._text.startswith("?:", self._at):
                raise ValueError("groups that look around, have names or flags are not read")
            self._at += 2
        part = self._choice()
        if self._take() != ")":
            raise ValueError("a '(' is not closed")
        return part

    def _escape(self) -> _Chars:
        char = self._take()
        if char.lower() in _CLASSES:
            return _Chars(_CLASSES[char.lower()], negated=char.isupper())
        if char in _CONTROLS:
            return _Chars(frozenset(_CONTROLS[char]))
        if char.isalnum():
            raise ValueError(f"'\\{char}' is not read")
        return _Chars(frozenset(char))

    def _set(self) -> _Chars:
        negated = self._peek() == "^"
        if negated:
            self._take()
        chars: set[str] = set()
        is_first = True
        while is_first or self._peek() != "]":
            is_first = False
            chars |= self._range()
        self._take()
        return _Chars(frozenset(chars), negated)

    def _range(self) -> frozenset[str]:
        low = self._member()
        if self._peek() != "-" or self._text[self._at + 1 : self._at + 2] in ("", "]"):
            return low
        self._take()
        high = self._member()
        if len(low) != 1 or len(high) != 1:
            raise ValueError("a range runs between two characters")
        first, last = ord(min(low)), ord(min(high))
        if last < first or last - first > MAX_PATTERN:
            raise ValueError("a range runs between two characters, upwards, and not through all of them")
        return frozenset(map(chr, range(first, last + 1)))

    def _member(self) -> frozenset[str]:
        char = self._take()
        if char != "\\":
            return frozenset(char)
        found = self._escape()
        if found.negated:
            raise ValueError("a class of all others is not read inside [...]")
        return found.chars


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 4
