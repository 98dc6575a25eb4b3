"""A recipe that must be refused, with marks at the places that must be named, and the words that must be said."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from command_line import Outcome, everything, mergeflow, write

MARK = "▶"
# Stands for any words, in a message that other rooms or libraries phrase.
ANY = "…"


def refused(text: str, *messages: str, options: Sequence[object] = ()) -> None:
    """`validate`, `plan` and `run` say the same messages, one for each mark, in order, and change nothing.

    One run goes to `out`, where an earlier output is when the test has one, and one to a folder that is not there.
    """
    plain, places = marked(text)
    expected = [
        f"recipe.yaml:{line}:{column}: error: {said}" for (line, column), said in zip(places, messages, strict=True)
    ]
    write(plain)
    before = everything(Path.cwd())
    for command in (["validate"], ["plan", "out"], ["run", "out"], ["run", "new/folder"]):
        done = mergeflow(command[0], "recipe.yaml", *command[1:], *options)
        says(done, 1, *expected)
        assert everything(Path.cwd()) == before


def says(done: Outcome, code: int, *lines: str) -> None:
    """Exactly these lines on stderr, nothing on stdout, and the exit code."""
    assert done.out == ""
    assert len(done.lines) == len(lines), done.err
    for line, expected in zip(done.lines, lines, strict=True):
        pattern = ".*".join(re.escape(part) for part in expected.split(ANY))
        assert re.fullmatch(pattern, line), f"{line!r} is not {expected!r}"
    assert done.code == code


def marked(text: str) -> tuple[str, list[tuple[int, int]]]:
    """A text without its marks, and the line and column of each."""
    lines = text.removeprefix("\n").split("\n")
    places = []
    for number, line in enumerate(lines, start=1):
        parts = line.split(MARK)
        column = 1
        for part in parts[:-1]:
            column += len(part)
            places.append((number, column))
        lines[number - 1] = "".join(parts)
    return "\n".join(lines), places
