"""What is wrong with a recipe, gathered while it is read, so that all of it is reported at once.

Reading never stops at a mistake. It notes it here, then goes on with the likeliest meaning (the nearest name) or
without the value, so that one mistake gives one message and hides no other.

What mergekit ignores in silence is an error in a native recipe, which its author can mend, and a warning in a
mergekit file, which must run unchanged.
"""

from __future__ import annotations

from mergeflow.errors import Position, Problem, Severity
from mergeflow.recipe.records import Form


class Findings:
    """The problems of one recipe, in the order they were met.

    `guesses` are the (reader, step) pairs that a guess at a mistyped name made: what follows from them alone is
    not reported.
    """

    def __init__(self, form: Form) -> None:
        self.form = form
        self.problems: list[Problem] = []
        self.guesses: set[tuple[str, str]] = set()

    @property
    def tolerant(self) -> bool:
        """Whether this is a mergekit file, which must run unchanged."""
        return self.form == "mergekit"

    def error(self, message: str, position: Position | None, path: str = "") -> None:
        """Notes something that keeps the recipe from running."""
        self._add(message, position, path, "error")

    def warning(self, message: str, position: Position | None, path: str = "") -> None:
        """Notes something doubtful."""
        self._add(message, position, path, "warning")

    def ignored_by_mergekit(self, message: str, position: Position | None, path: str = "") -> None:
        """Notes something that mergekit ignores: an error, but a warning in a mergekit file."""
        self._add(message, position, path, "warning" if self.tolerant else "error")

    def _add(self, message: str, position: Position | None, path: str, severity: Severity) -> None:
        self.problems.append(Problem(message, position, path, severity))


def in_file_order(problems: list[Problem]) -> tuple[Problem, ...]:
    """Problems by line and column; those without a place come first."""
    return tuple(sorted(problems, key=_place))


def _place(problem: Problem) -> tuple[int, int]:
    return (problem.position.line, problem.position.column) if problem.position else (0, 0)
