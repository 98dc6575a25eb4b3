"""mergeflow from Python, in the words of the command line.

import mergeflow

recipe = mergeflow.load("recipe.yaml", density=0.4)
print(mergeflow.plan(recipe).peak_bytes)
report = mergeflow.run(recipe, "./merged")
for name, tensor in mergeflow.tensors(recipe, "skills"):
    ...
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mergeflow.errors import RecipeError
from mergeflow.execute.events import Listener, ignore
from mergeflow.recipe.read import read_recipe
from mergeflow.recipe.records import Recipe
from mergeflow.workflow.options import Options

if TYPE_CHECKING:
    import torch

    from mergeflow.graph.plan import Plan
    from mergeflow.workflow.report import RunReport


def load(path: str | Path, **variables: object) -> Recipe:
    """Read a recipe: a native one, or any mergekit file.

    Args:
        variables: values for the recipe's `vars`, instead of its own.

    Raises:
        RecipeError: everything that is wrong with the text, at once.
    """
    recipe = read_recipe(path, {name: _yaml_text(value) for name, value in variables.items()})
    if any(problem.severity == "error" for problem in recipe.problems):
        raise RecipeError(recipe.problems)
    return recipe


def plan(recipe: Recipe | str | Path, out: str | Path | None = None, *, options: Options | None = None) -> Plan:
    """What `run` would do: per step what is computed, cached and why, bytes, peak memory. Reads no weights.

    Raises:
        RecipeError: the recipe or a model it names has errors.
    """
    from mergeflow.workflow.planning import plan_recipe

    return plan_recipe(_recipe(recipe), _path(out), options or Options(), ignore)


def run(
    recipe: Recipe | str | Path,
    out: str | Path | None = None,
    *,
    options: Options | None = None,
    listen: Listener = ignore,
) -> RunReport:
    """Make the outputs of a recipe.

    Args:
        out: folder of the output (of all outputs, a folder below it for each, when there are several); None for
            the recipe's own.
        listen: told what happens, as records of `mergeflow.execute.events`; may be called from several threads.

    Raises:
        RecipeError: the recipe or a model it names has errors; nothing was touched.
        OutputError: an output's folder cannot be written; nothing was touched.
        RunError: the run failed; outputs are what they were before.
    """
    from mergeflow.workflow.running import run_recipe

    return run_recipe(_recipe(recipe), _path(out), options or Options(), listen)


def tensors(
    recipe: Recipe | str | Path, step: str, *, options: Options | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of one step's result, one after the other, in natural order of their names.

    Each is whole, on the CPU, in the dtype the step computes in (float32, or what its `dtype` says). Statistics and
    cached tensors of earlier runs are used, and statistics computed here are cached.

    Raises:
        KeyError: the recipe has no such step.
        RecipeError: the recipe or a model it names has errors.
    """
    from mergeflow.workflow.looking import step_tensors

    return step_tensors(_recipe(recipe), step, options or Options(), ignore)


def _recipe(recipe: Recipe | str | Path) -> Recipe:
    return recipe if isinstance(recipe, Recipe) else load(recipe)


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def _yaml_text(value: object) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value)
