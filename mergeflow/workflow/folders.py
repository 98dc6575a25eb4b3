"""Which folders a run may write: each output its own, and never one that the run reads.

A finished output takes its folder's place in one step, and what was there is gone. A model that is merged must not be
what is gone, nor hold the folder that comes and goes, so none of the two may lie in the other. Folders are compared
as they are on the disk, whatever links lead to them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from mergeflow.errors import OutputError, Problem, RecipeError
from mergeflow.models.records import Checkpoint
from mergeflow.recipe.records import Output, Recipe


def output_folder(recipe: Recipe, output: Output, out: Path | None) -> Path | None:
    """Where an output goes: `out` (when there are several, a folder of its step below it), or the recipe's own place.

    Raises:
        RecipeError: the recipe's place is nowhere (``~somebody`` who is no user here).
    """
    if out is not None:
        return out / output.step if len(recipe.outputs) > 1 else out
    if output.path is None:
        return None
    try:
        return recipe.folder / Path(output.path).expanduser()
    except RuntimeError as error:
        raise RecipeError([_problem(output, out, f"{output.path}: {error}")]) from error


def check_folders(recipe: Recipe, models: Iterable[Checkpoint], out: Path | None, *, needed: bool) -> None:
    """See to it that every output may be written where it shall be. Changes nothing.

    Args:
        models: everything the run reads.
        out: the folder given on the command line; None when the outputs' folders are the recipe's own.
        needed: an output without a folder is an error.

    Raises:
        RecipeError: an output has no folder, or one that the recipe must not name; with the line that names it.
        OutputError: the folder of the command line cannot be used.
    """
    missing = _missing(recipe) if needed and out is None else ()
    problems = [*missing, *overlaps(recipe, models, out)]
    if not problems:
        problems = [problem for output in recipe.outputs if (problem := _unusable(recipe, output, out)) is not None]
    if problems:
        raise RecipeError(problems)


def overlaps(recipe: Recipe, models: Iterable[Checkpoint], out: Path | None) -> Iterator[Problem]:
    """Outputs whose folder is, holds or lies in that of a model or of another output."""
    folders = [(f"the model {model.label}", model.folder) for model in models if model.folder is not None]
    read = len(folders)
    for output in recipe.outputs:
        try:
            place = output_folder(recipe, output, out)
        except RecipeError as error:
            yield from error.problems
            continue
        if place is None:
            continue
        for number, (owner, folder) in enumerate(folders):
            relation = _relation(place, folder)
            if relation is not None:
                rule = _RULES[relation] if number < read else "and each output needs its own: choose another folder"
                yield _problem(output, out, f"{place} {relation} the folder of {owner}, {rule}")
        folders.append((f"the output {output.step}", place))


_RULES = {
    "is": "which the output would replace: choose another folder",
    "holds": "which the output would replace: choose another folder",
    "lies in": "which is only read: choose a folder outside of it",
}


def _relation(path: Path, folder: Path) -> str | None:
    """How the place of an output lies to another folder; None when they have nothing to do with each other."""
    one, other = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    if one == other or (os.path.exists(one) and os.path.exists(other) and one.samefile(other)):
        return "is"
    if other in one.parents:
        return "lies in"
    return "holds" if one in other.parents else None


def _missing(recipe: Recipe) -> Iterator[Problem]:
    for output in recipe.outputs:
        if output.path is None:
            message = f"no folder for the output {output.step}: name one (mergeflow run {recipe.file} OUT)"
            yield _problem(output, None, message)


def _unusable(recipe: Recipe, output: Output, out: Path | None) -> Problem | None:
    """Why a run may not write where the recipe says; OutputError when the command line says so."""
    from mergeflow.output.target import inspect_target

    place = output_folder(recipe, output, out)
    if place is None:
        return None
    try:
        inspect_target(place)
    except OutputError as error:
        reason = str(error)
    except OSError as error:  # a name too long for this system, a disk that fails
        reason = f"cannot write {place}: {error.strerror or error}"
    else:
        return None
    if out is not None:
        raise OutputError(reason)
    return _problem(output, out, reason)


def _problem(output: Output, out: Path | None, message: str) -> Problem:
    if out is not None:
        return Problem(message)
    return Problem(message, output.position, f"outputs.{output.step}")
