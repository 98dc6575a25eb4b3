"""The command line as a test uses it: in this process, where nothing may escape but an exit code and two texts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

from typer.testing import CliRunner

from mergeflow.cli.main import app

# Folders of a test that a command may write beside its output: the cache, and what the machine remembers.
OWN = ("cache", "home")


@dataclass(frozen=True)
class Outcome:
    """What a command did: its exit code, and what it wrote to stdout and to stderr."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()


def mergeflow(*arguments: object, answer: str | None = None) -> Outcome:
    """Run a command; an exception that no user should see fails the test."""
    texts = [str(argument) for argument in arguments]
    done = CliRunner().invoke(app, texts, input=answer, catch_exceptions=False, prog_name="mergeflow")
    assert "Traceback" not in done.stderr
    assert "mistake in mergeflow" not in done.stderr
    return Outcome(done.exit_code, done.stdout, done.stderr)


def write(text: str, path: str = "recipe.yaml") -> str:
    """A recipe in the current folder; its first line is the line after the opening quotes."""
    Path(path).write_text(dedent(text).removeprefix("\n"), encoding="utf-8")
    return path


def everything(folder: Path) -> dict[str, bytes | None]:
    """Every file, link (as what it says) and folder (as None) under `folder`, but for what a command may write."""
    found: dict[str, bytes | None] = {}
    for place, folders, files in os.walk(folder):
        if Path(place) == folder:
            folders[:] = [name for name in folders if name not in OWN]
        for name in folders:
            found[str(Path(place, name).relative_to(folder))] = None
        for name in files:
            path = Path(place, name)
            content = os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes()
            found[str(path.relative_to(folder))] = content
    return found
