"""Which folders a run may write: each output its own, and never one that the run reads.

A finished output takes its folder's place in one step, and what was there is gone. A model that is merged must not be
what is gone, nor hold the folder that comes and goes, so none of the two may lie in the other. Folders are compared
as they are on the disk, whatever links lead to them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mergeflow.errors import OutputError, Problem, RecipeError
from mergeflow.models.records import Checkpoint
from mergeflow.output.target import inspect_target
from mergeflow.recipe.records import Recipe
from mergeflow.workflow.destination import Destination


def check_folders(
    recipe: Recipe, found: Sequence[Destination], models: Iterable[Checkpoint], out: Path | None, *, needed: bool
) -> None:
    """See to it that every output may be written where it shall be. Changes nothing.

    Args:
        models: everything the run reads.
        out: the folder given on the command line; None when the outputs' folders are the recipe's own.
        needed: an output without a folder is an error.

    Raises:
        RecipeError: an output has no folder, or one that the recipe must not name; with the line that names it.
        OutputError: the folder of the command line cannot be used.
    """
    problems = [*(_missing(recipe, found) if needed else ()), *overlaps(found, models, out)]
    if not problems:
        problems = [problem for destination in found if (problem := _unusable(destination, out)) is not None]
    if problems:
        raise RecipeError(problems)


def overlaps(found: Sequence[Destination], models: Iterable[Checkpoint], out: Path | None) -> Iterator[Problem]:
    """Outputs whose folder is, holds or lies in that of a model or of another output."""
    folders = [(f"the model {model.label}", model.folder) for model in models if model.folder is not None]
    read = len(folders)
    for destination in found:
        if destination.path is None:
            continue
        for number, (owner, folder) in enumerate(folders):
            relation = _relation(destination.path, folder)
            if relation is not None:
                rule = _RULES[relation] if number < read else "and each output needs its own: choose another folder"
                yield _problem(destination, out, f"{destination.path} {relation} the folder of {owner}, {rule}")
        folders.append((f"the output {destination.step}", destination.path))


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


def _missing(recipe: Recipe, found: Iterable[Destination]) -> Iterator[Problem]:
    for destination in found:
        if destination.path is None:
            message = f"no folder for the output {destination.step}: name one (mergeflow run {recipe.file} OUT)"
            yield _problem(destination, None, message)


def _unusable(destination: Destination, out: Path | None) -> Problem | None:
    """Why a run may not write where the recipe says; OutputError when the command line says so."""
    if destination.path is None:
        return None
    try:
        inspect_target(destination.path)
    except OutputError as error:
        reason = str(error)
    except OSError as error:  # a name too long for this system, a disk that fails
        reason = f"cannot write {destination.path}: {error.strerror or error}"
    else:
        return None
    if out is not None:
        raise OutputError(reason)
    return _problem(destination, out, reason)


def _problem(destination: Destination, out: Path | None, message: str) -> Problem:
    output = destination.compiled.output
    if out is not None:
        return Problem(message)
    return Problem(message, output.position, f"outputs.{output.step}")
