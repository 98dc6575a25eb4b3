"""What `validate` says."""

from __future__ import annotations

from pathlib import Path

from mergeflow.cli.console import plain, show_problems, stdout, styled
from mergeflow.errors import counted
from mergeflow.graph.values import Compiled


def show_verdict(recipe: Path, compiled: Compiled, *, failed: bool, candidates: int = 0) -> None:
    """Every problem, or that there is none and what the recipe would make."""
    show_problems(compiled.problems)
    if failed:
        return
    made = ", ".join(f"{output.output.step} ({counted(len(output.tensors), 'tensor')})" for output in compiled.outputs)
    steps = counted(len(compiled.results), "step")
    each = f", for each of {counted(candidates, 'candidate')}" if candidates else ""
    stdout().print(styled((f"{plain(recipe)} is valid", "green"), f": {steps}, makes {plain(made)}{each}"))


def problems_json(compiled: Compiled) -> dict[str, object]:
    """The problems as plain data."""
    return {
        "problems": [
            {
                "severity": problem.severity,
                "message": problem.message,
                "path": problem.path,
                "file": problem.position.file if problem.position else None,
                "line": problem.position.line if problem.position else None,
                "column": problem.position.column if problem.position else None,
            }
            for problem in compiled.problems
        ]
    }
