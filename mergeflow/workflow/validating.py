"""Everything that is wrong with a recipe and with what it names, without touching a weight."""

from __future__ import annotations

from dataclasses import replace

from mergeflow.errors import Problem
from mergeflow.execute.events import Listener
from mergeflow.graph.values import Compiled
from mergeflow.recipe.records import Recipe
from mergeflow.recipe.sweep import merged_problems
from mergeflow.workflow.candidates import clashes
from mergeflow.workflow.folders import overlaps
from mergeflow.workflow.models import Opened, compile_from_headers, in_file_order, judged


def validate_recipe(recipe: Recipe, listen: Listener, *, strict: bool) -> Compiled:
    """The recipe compiled from headers; its `problems` are all there are.

    Args:
        strict: warnings are errors.

    Of a recipe with a sweep every candidate is looked at, and the first one is returned, with the problems of all.
    """
    if recipe.candidates:
        return _validate_candidates(recipe, listen, strict=strict)
    compiled = compile_from_headers(recipe, listen, download=False)
    reported = {problem.path for problem in compiled.problems}
    clashes = overlaps(recipe, compiled.checkpoints.values(), None)
    problems = in_file_order([*compiled.problems, *(clash for clash in clashes if clash.path not in reported)])
    return replace(compiled, problems=judged(problems, strict=strict))


def _validate_candidates(recipe: Recipe, listen: Listener, *, strict: bool) -> Compiled:
    opened = Opened()
    compiled: list[Compiled] = []
    found: dict[str, list[Problem]] = {}
    for candidate in recipe.candidates:
        made = compile_from_headers(candidate, listen, download=False, opened=opened)
        compiled = compiled or [made]
        reported = {problem.path for problem in made.problems}
        clashing = overlaps(candidate, made.checkpoints.values(), None)
        found[candidate.candidate] = [*made.problems, *(it for it in clashing if it.path not in reported)]
    common = clashes(recipe.candidates, None)
    problems = in_file_order([*merged_problems(found), *common])
    return replace(compiled[0], problems=judged(problems, strict=strict))
