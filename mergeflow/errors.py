"""Every error mergeflow raises on purpose, and the problems it reports.

    MergeflowError              exit code
    ├── RecipeError             1   the recipe (or what it names) is wrong: all problems at once
    ├── CheckpointError         1   a model folder, header, index or hub id is not what it claims
    ├── OutputError             1   the target folder cannot be used
    ├── MethodError             1   a function cannot be a merge method as it is declared
    ├── MergeError              1   tensors in memory cannot be merged as asked
    ├── CacheError              1   the cache cannot be used
    │   └── CorruptEntry        -   one entry is damaged: the run drops it and computes the value again
    │       └── LostEntry       -   one entry of a shared cache cannot be fetched: likewise
    └── RunError                3   the run itself failed (disk full, input replaced, worker lost)
        └── SweepError          3   candidates of a sweep failed; the others were made

Leaf code states the fact; the edge (recipe reading, planning, the command line) adds where in the recipe.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in a text file; line and column count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong (or doubtful) about a recipe: what, and where.

    Args:
        message: what is wrong, the rule, and the nearest valid name, on one line.
        position: file, line and column of the value at fault, when it stands in a file.
        path: dotted path of the value, such as ``steps.final.models[1].parameters.t``.
        severity: a warning does not stop a run (it does under ``--strict``).
    """

    message: str
    position: Position | None = None
    path: str = ""
    severity: Severity = "error"

    def __str__(self) -> str:
        where = f"{self.position}: " if self.position else ""
        path = f"{self.path}: " if self.path else ""
        return f"{where}{self.severity}: {path}{self.message}"


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few of `names`, and how many more there are, for a message."""
    more = f" (and {len(names) - most} more)" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def counted(count: float, noun: str, plural: str = "") -> str:
    """A number of things, such as ``1 tensor`` or ``9 tensors``."""
    number = f"{count:g}" if isinstance(count, float) else str(count)
    return f"{number} {noun if count == 1 else plural or noun + 's'}"


class MergeflowError(Exception):
    """The root of the tree; `exit_code` is what the command line returns for it."""

    exit_code = 1


class RecipeError(MergeflowError):
    """Everything that is wrong with a recipe, in the order of the file."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class CheckpointError(MergeflowError):
    """A checkpoint cannot be read: missing, damaged, lying about its contents, or not reachable."""


class OutputError(MergeflowError):
    """The output folder cannot be written: not ours, not enough room, no permission."""


class MethodError(MergeflowError):
    """A function was declared as a merge method and cannot be one."""


class MergeError(MergeflowError):
    """Tensors in memory cannot be merged as asked: everything that is wrong, a line each."""


class CacheError(MergeflowError):
    """The cache cannot be used."""


class CorruptEntry(CacheError):
    """One cache entry is damaged. Carries its key, so that the entry can be dropped."""

    def __init__(self, key: str, reason: str) -> None:
        self.key = key
        self.reason = reason
        super().__init__(f"cache entry {key[:12]} is damaged: {reason}")

    def __reduce__(self) -> tuple[type[CorruptEntry], tuple[str, str]]:
        return type(self), (self.key, self.reason)


class LostEntry(CorruptEntry):
    """One entry of a shared cache was there when it was looked up, and cannot be fetched."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.args = (f"cache entry {key[:12]} cannot be fetched: {reason}",)


class RunError(MergeflowError):
    """The run failed after it had started; what was there before it is untouched."""

    exit_code = 3


class SweepError(RunError):
    """Candidates of a sweep failed; the others were made. `report` is the `RunReport` of all of them."""

    def __init__(self, message: str, report: object) -> None:
        self.report = report
        super().__init__(message)
