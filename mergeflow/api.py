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
from dataclasses import dataclass
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
    from mergeflow.output.lineage import Lineage
    from mergeflow.workflow.report import RunReport
    from mergeflow.workflow.sweep_plan import SweepPlan
    from mergeflow.workflow.verifying import Verification


def load(path: str | Path, **variables: object) -> Recipe:
    """Read a recipe: a native one, or any mergekit file.

    Args:
        variables: values for the recipe's `vars`, instead of its own. A list is one value, a gradient. A text is read
            as on the command line: ``density="0.3,0.5"`` sweeps it, as does ``density=Sweep(0.3, 0.5)``.

    A recipe with a sweep has `candidates`, each of them a recipe that can be planned and run on its own.

    Raises:
        RecipeError: everything that is wrong with the text, at once.
    """
    recipe = read_recipe(path, {name: _yaml_text(value) for name, value in variables.items()})
    if any(problem.severity == "error" for problem in recipe.problems):
        raise RecipeError(recipe.problems)
    return recipe


def plan(
    recipe: Recipe | str | Path, out: str | Path | None = None, *, options: Options | None = None
) -> Plan | SweepPlan:
    """What `run` would do: per step what is computed, cached and why, bytes, peak memory. Reads no weights.

    Of a recipe with a sweep, the plans of its candidates, each given that those before it have run.

    Raises:
        RecipeError: the recipe or a model it names has errors.
    """
    from mergeflow.workflow.planning import plan_recipe
    from mergeflow.workflow.sweep_plan import plan_sweep

    wanted = _recipe(recipe)
    if wanted.candidates:
        return plan_sweep(wanted, _path(out), options or Options(), ignore)
    return plan_recipe(wanted, _path(out), options or Options(), ignore)


def run(
    recipe: Recipe | str | Path,
    out: str | Path | None = None,
    *,
    options: Options | None = None,
    listen: Listener = ignore,
) -> RunReport:
    """Make the outputs of a recipe.

    Args:
        out: folder of the output (of all outputs, a folder below it for each, when there are several; of a sweep, a
            folder below it for each candidate); None for the recipe's own.
        listen: told what happens, as records of `mergeflow.execute.events`; may be called from several threads.

    Raises:
        RecipeError: the recipe or a model it names has errors; nothing was touched.
        OutputError: an output's folder cannot be written; nothing was touched.
        RunError: the run failed; outputs are what they were before.
        SweepError: candidates of a sweep failed (a RunError); the others were made, and its `report` has them.
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


def export(
    recipe: Recipe | str | Path,
    step: str,
    out: str | Path,
    *,
    dtype: str | None = None,
    max_shard_bytes: int | None = None,
    options: Options | None = None,
    listen: Listener = ignore,
) -> RunReport:
    """Write the result of any step, after the fact: a model folder; for a delta a folder, or a file ``*.safetensors``.

    Args:
        dtype: of the floats, such as ``bfloat16``; None for what a run would write, and float32 for a delta.
        max_shard_bytes: the most in one file of a folder; None for the recipe's, else 5 GB.

    Raises:
        RecipeError: there is no such step, or the recipe or a model it names has errors; nothing was touched.
        OutputError: `out` cannot be written; nothing was touched.
        RunError: it failed; `out` is what it was before.
    """
    from mergeflow.workflow.exporting import export_step

    wanted = _recipe(recipe)
    return export_step(
        wanted, step, Path(out), options or Options(), listen, dtype=dtype, max_shard_bytes=max_shard_bytes
    )


def verify(
    out: str | Path,
    *,
    models: str | Path | None = None,
    quick: bool = False,
    cached: bool = False,
    options: Options | None = None,
    listen: Listener = ignore,
) -> Verification:
    """Compare an output with its lock: its files, the key of every tensor, and every byte, computed anew.

    Args:
        models: a folder to look for the inputs in.
        quick: compute nothing.
        cached: believe the cache.

    Raises:
        OutputError: `out` is no output of mergeflow.
        RunError: a file cannot be read.
    """
    from mergeflow.workflow.verifying import verify_output

    return verify_output(Path(out), options or Options(), listen, models=_path(models), quick=quick, cached=cached)


def lineage(out: str | Path) -> Lineage:
    """How an output was made, back to the digests of its inputs, from its lock alone.

    Raises:
        OutputError: `out` is no output of mergeflow.
    """
    from mergeflow.workflow.lineage import lineage_at

    return lineage_at(Path(out))


@dataclass(frozen=True, slots=True, init=False)
class Sweep:
    """Several values for a variable in `load`, of which each is run: ``load(path, density=Sweep(0.3, 0.5))``."""

    values: tuple[object, ...]

    def __init__(self, *values: object) -> None:
        object.__setattr__(self, "values", values)


def _recipe(recipe: Recipe | str | Path) -> Recipe:
    return recipe if isinstance(recipe, Recipe) else load(recipe)


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def _yaml_text(value: object) -> str:
    import json

    if isinstance(value, Sweep):
        # A text among several is a text, commas and all.
        return ",".join(map(json.dumps, value.values))
    return value if isinstance(value, str) else json.dumps(value)
