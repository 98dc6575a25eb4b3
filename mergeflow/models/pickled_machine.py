"""A machine for pickles that can do nothing but make plain values.

A pickle is a program for a stack machine. Python's own looks up any function the program names, and calls it: loading
a stranger's pickle is running a stranger's program. This one has the same instructions, but a name stays a name: what
names, calls and persistent ids mean is decided by the `Meaning` it is given, a closed table (`pickled_objects`).
Nothing is imported, nothing is called, no object of any class is made but None, numbers, texts, bytes, lists, tuples
and dicts.

What a program may use up is bounded: its bytes (`pickled_stream`), its instructions (and with them the memory: none
makes more than a small empty container, or a value as long as its bytes), and the size of its whole numbers. Values
are never compared, hashed or printed, except texts and small numbers as keys of dicts: a few instructions can make a
tuple of tuples with 2^60 leaves. Sets would have to be hashed, and are nothing here.

The instructions themselves are in `pickled_instructions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mergeflow.models.pickled_stream import PickleStream

MAX_OPEN_MARKS = 10_000


@dataclass(frozen=True, slots=True)
class Opaque:
    """A value that is nothing to us: an object of some class, what a function would have returned."""

    what: str


class Meaning(Protocol):
    """What a pickle's names, calls and persistent ids stand for."""

    def name(self, module: str, name: str) -> object:
        """The value of a name."""

    def call(self, function: object, arguments: object) -> object:
        """The result of a call of a name's value."""

    def persistent(self, identity: object) -> object:
        """The value that lies outside the pickle."""


class Machine:
    """The stack, the marks in it, and the memo."""

    def __init__(self, stream: PickleStream, meaning: Meaning) -> None:
        self.stream = stream
        self.meaning = meaning
        self.memo: dict[int, object] = {}
        self._stack: list[object] = []
        self._below: list[list[object]] = []

    def push(self, value: object) -> None:
        self._stack.append(value)

    def pop(self) -> object:
        if not self._stack:
            raise self.stream.damaged("it takes a value where there is none")
        return self._stack.pop()

    def drop(self) -> None:
        """Take away what lies on top, be it a value or a mark."""
        if self._stack:
            self._stack.pop()
        else:
            self.pop_to_mark()

    def top(self) -> object:
        if not self._stack:
            raise self.stream.damaged("it looks at a value where there is none")
        return self._stack[-1]

    def mark(self) -> None:
        if len(self._below) >= MAX_OPEN_MARKS:
            raise self.stream.damaged("it is nested too deeply")
        self._below.append(self._stack)
        self._stack = []

    def pop_to_mark(self) -> list[object]:
        if not self._below:
            raise self.stream.damaged("it takes values down to a mark that was never set")
        values, self._stack = self._stack, self._below.pop()
        return values

    def number(self, size: int) -> int:
        """The next `size` bytes, as a whole number without a sign."""
        return int.from_bytes(self.stream.take(size), "little")

    def counted(self, size: int) -> bytes:
        """As many bytes as the next `size` bytes say."""
        return self.stream.take(self.number(size))
