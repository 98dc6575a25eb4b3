"""Everything that is wrong with a recipe and with what it names, without touching a weight."""

from __future__ import annotations

from dataclasses import replace

from mergeflow.execute.events import Listener
from mergeflow.graph.values import Compiled
from mergeflow.recipe.records import Recipe
from mergeflow.workflow.folders import overlaps
from mergeflow.workflow.models import compile_from_headers, in_file_order, judged


def validate_recipe(recipe: Recipe, listen: Listener, *, strict: bool) -> Compiled:
    """The recipe compiled from headers; its `problems` are all there are.

    Args:
        strict: warnings are errors.
    """
    compiled = compile_from_headers(recipe, listen, download=False)
    reported = {problem.path for problem in compiled.problems}
    clashes = overlaps(recipe, compiled.checkpoints.values(), None)
    problems = in_file_order([*compiled.problems, *(clash for clash in clashes if clash.path not in reported)])
    return replace(compiled, problems=judged(problems, strict=strict))
