"""Where the command line writes: results to stdout, everything else to stderr, colour only where it is wanted.

rich leaves colour out when the stream is not a terminal or ``NO_COLOR`` is set.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from mergeflow.errors import MergeflowError, Problem, RecipeError


def stdout() -> Console:
    """For results. Long lines are not wrapped when a program reads them."""
    return Console(highlight=False, soft_wrap=True)


def stderr() -> Console:
    """For errors, warnings and progress."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def show_error(error: MergeflowError) -> None:
    """An error as ``file:line:col: error: ...``, every problem of a recipe on a line of its own."""
    if isinstance(error, RecipeError):
        show_problems(error.problems)
    else:
        stderr().print(f"[bold red]error:[/] {escape(str(error))}")


def show_problems(problems: Sequence[Problem]) -> None:
    """Problems, a line each, on stderr."""
    console = stderr()
    for problem in problems:
        colour = "bold red" if problem.severity == "error" else "yellow"
        where = f"{problem.position}: " if problem.position else ""
        path = f"{problem.path}: " if problem.path else ""
        console.print(f"{escape(where)}[{colour}]{problem.severity}:[/] {escape(path + problem.message)}")


def show_warning(message: str) -> None:
    """One warning on stderr; a problem's own text says where it is."""
    text = message if "warning: " in message else f"warning: {message}"
    stderr().print(f"[yellow]{escape(text)}[/]")
