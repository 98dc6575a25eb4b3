"""Writing any step after the fact, as `run` would have written it had the recipe named it as an output.

    mergeflow export RECIPE STEP OUT      weights: a model folder
                                          a delta: a folder with delta.safetensors, or one file (OUT.safetensors)

An export is a run of the recipe's steps that lead to this one. So what is in the cache is read from there and the rest
is computed, a killed export goes on where it was, and nothing incomplete is ever seen under OUT's name. An output of
the recipe is exported with the format that the recipe gives it, unless told otherwise.

One file is written as a folder beside OUT (``.NAME.export``) that holds nothing but it, and takes OUT's name last.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from mergeflow.errors import OutputError, Problem, RecipeError, counted
from mergeflow.execute.events import Listener
from mergeflow.models.records import Checkpoint
from mergeflow.output.disk import Disk
from mergeflow.output.failures import reported
from mergeflow.output.layout import DELTA_STEM
from mergeflow.recipe.cycles import reached
from mergeflow.recipe.nearest import did_you_mean, quoted
from mergeflow.recipe.records import Output, Recipe, StepReference
from mergeflow.workflow.delta_file import SUFFIX, is_delta_file
from mergeflow.workflow.models import check, compile_from_headers
from mergeflow.workflow.options import Options
from mergeflow.workflow.published import remember_output
from mergeflow.workflow.report import RunReport
from mergeflow.workflow.running import run_recipe

UNUSED = "no output uses this step: it is not computed"


def export_step(
    recipe: Recipe,
    step: str,
    out: Path,
    options: Options,
    listen: Listener,
    *,
    dtype: str | None = None,
    max_shard_bytes: int | None = None,
) -> RunReport:
    """Write the result of one step to `out`.

    Args:
        out: a folder; for a delta also a file that ends with ``.safetensors``.
        dtype: of the floats; None for what the recipe says of this output, else as a run decides, and float32 for a
            delta (float64 where it is computed in that).
        max_shard_bytes: the most in one file of a folder; None for what the recipe says, else 5 GB.

    Raises:
        RecipeError: no such step, or the recipe or a model has errors; nothing was touched.
        OutputError: `out` cannot be written, or one file was asked for a whole model; nothing was touched.
        RunError: the run failed; `out` is what it was.
    """
    is_file = out.suffix == SUFFIX
    alone = exported_recipe(recipe, step, "file" if is_file else "folder", dtype, max_shard_bytes)
    if not is_file:
        return run_recipe(alone, out, options, listen, remember=False)

    headers = compile_from_headers(alone, listen, download=False, state=options.state)
    check(headers, strict=options.strict)
    if headers.results[step].type != "delta":
        raise OutputError(f"{step} is a model, which is a folder: name one, such as {out.with_suffix('')}")
    target = Path(os.path.realpath(out))
    _check_file(target, headers.checkpoints.values())
    folder = target.parent / f".{target.name}.export"
    report = run_recipe(alone, folder, options, listen, remember=False)
    _take_out(folder / f"{DELTA_STEM}{SUFFIX}", target)
    remember_output(options.state, target, recipe)
    return replace(report, outputs=tuple(replace(output, path=str(target)) for output in report.outputs))


def exported_recipe(
    recipe: Recipe, step: str, form: str, dtype: str | None = None, max_shard_bytes: int | None = None
) -> Recipe:
    """The recipe whose only output is `step`, without the steps that do not lead to it.

    Raises:
        RecipeError: there is no such step.
    """
    names = [it.name for it in recipe.steps]
    errors = [problem for problem in recipe.problems if problem.severity == "error"]
    if step not in names:
        raise RecipeError(errors or [Problem(f"{recipe.file} has no step {quoted(step)}{_hint(step, names)}")])
    if recipe.candidates:
        many = counted(len(recipe.candidates), "candidate")
        swept = ", ".join(recipe.sweep)
        raise RecipeError([Problem(f"{recipe.file} is a sweep of {many}: choose one, with --set for {swept}")])
    stated = next((output for output in recipe.outputs if output.step == step), Output(step))
    output = replace(
        stated,
        path=None,
        dtype=dtype or stated.dtype,
        max_shard_bytes=stated.max_shard_bytes if max_shard_bytes is None else max_shard_bytes,
        delta="file" if form == "file" else "folder",
    )
    ends = [step, *([stated.tokenizer.name] if isinstance(stated.tokenizer, StepReference) else [])]
    used = reached(recipe.steps, ends)
    return replace(
        recipe,
        steps=tuple(it for it in recipe.steps if it.name in used),
        outputs=(output,),
        problems=tuple(problem for problem in recipe.problems if problem.message != UNUSED),
    )


def _hint(step: str, names: list[str]) -> str:
    return did_you_mean(step, names, "steps")


def _check_file(target: Path, models: Iterable[Checkpoint]) -> None:
    """One file may take the place of nothing, or of an earlier export, and lies in no folder that is read."""
    for model in models:
        if model.folder is None:
            continue
        place = Path(os.path.realpath(model.folder))
        if target == place or place in target.parents:
            raise OutputError(f"{target} lies in the folder of the model {model.label}, which is only read")
    if target.is_dir():
        raise OutputError(f"{target} is a folder: name a file in it, or a name without {SUFFIX}")
    if os.path.lexists(target) and not is_delta_file(target):
        raise OutputError(f"{target} is a file that mergeflow did not write: choose another name, or remove it")


def _take_out(made: Path, target: Path) -> None:
    """Give the only file of a folder the name it was made for, and remove the folder."""
    disk = Disk()
    with reported(OutputError, f"write {target}"):
        disk.rename(made, target)
        disk.sync(target.parent)
    shutil.rmtree(made.parent, ignore_errors=True)
