"""How a model was made, as a tree of steps and inputs, from its lock alone.

final = slerp(t=0.7)
├── chat: org/chat-7b @ 5a1c2e9   digest 9c1f...
└── skills = ties(...)
    └── math: ./models/math   digest 70aa...
        └── made with mergeflow 0.1.0: ...            where mergeflow made that input

The recipe in the lock is read again, with the variables of the lock, to see which step reads which. A recipe that this
version cannot read any more (or that somebody has made up) gives a flat list instead: the steps as the lock has them,
and the inputs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from mergeflow.errors import OutputError
from mergeflow.output.json_fields import Plain
from mergeflow.output.lineage import Lineage, LockedModel
from mergeflow.output.lock import LOCK_FILE, Lock, lineage_of, read_lock, read_lock_file
from mergeflow.output.target import is_between_versions
from mergeflow.recipe.cycles import find_cycles
from mergeflow.recipe.places import named_sources
from mergeflow.recipe.read import read_recipe
from mergeflow.recipe.records import Recipe, Step, StepReference
from mergeflow.workflow.delta_file import is_delta_file, lock_in_file
from mergeflow.workflow.locking import step_text, variable_text

# A recipe is read as if it lay here: nothing is looked up on the disk.
NOWHERE = Path(os.devnull) / "nowhere"
# A made-up recipe must not fill the terminal.
MOST_LINES = 10_000
MOST_DEEP = 500


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the tree: a step (`text` says what it does), an input (`model`), or how an input was made (`made`).

    `repeated` is a step that stands in full further up; `depth` counts from 0.
    """

    depth: int
    name: str
    text: str = ""
    model: LockedModel | None = None
    made: Lineage | None = None
    repeated: bool = False


def lock_at(path: Path) -> Lock:
    """The lock of an output: of its folder, of a delta in one file, or a lock file itself.

    Raises:
        OutputError: there is none, or it is damaged.
    """
    if path.is_dir():
        lock = read_lock(path)
        if lock is None and is_between_versions(path):
            raise OutputError(
                f"{path} is between two versions (a run that patched it was killed): run the recipe again"
            )
        if lock is None:
            raise OutputError(f"{path} is no output of mergeflow: it has no {LOCK_FILE}")
        return lock
    if not path.exists():
        raise OutputError(f"there is no {path}")
    if is_delta_file(path):
        return lock_in_file(path)
    try:
        return read_lock_file(path)
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror or error}") from error


def lines(lineage: Lineage) -> Iterator[Line]:
    """The tree of an output, line by line from the top: its step and all it was made of.

    Walked with a stack of its own, since a chain of steps may be longer than Python's.
    """
    waiting: list[_Item] = list(reversed(_roots(lineage, 0)))
    for _ in range(MOST_LINES):
        if not waiting:
            return
        item = waiting.pop()
        if isinstance(item, _Step):
            is_repeated = item.name in item.tree.seen
            step = item.tree.recipe.step(item.name)
            yield Line(item.depth, item.name, step_text(step), repeated=is_repeated)
            item.tree.seen.add(item.name)
            if not is_repeated and item.depth < MOST_DEEP:
                waiting += reversed(_inputs(item, step))
        else:
            yield item
            if item.made is not None:
                waiting += reversed(_roots(item.made, item.depth + 1))
            elif item.model is not None and item.model.made is not None:
                waiting.append(Line(item.depth + 1, item.name, made=item.model.made))


def lineage_at(path: Path) -> Lineage:
    """How the output at `path` was made.

    Raises:
        OutputError: it is no output of mergeflow.
    """
    return lineage_of(lock_at(path))


def locked_recipe(lineage: Lineage, folder: Path = NOWHERE, fallback: Path | None = None) -> Recipe:
    """The recipe of a lock, with the variables and the seed it was run with.

    Args:
        folder: where its paths start.
    """
    stated = _read(lineage.recipe, {}, folder)
    values = {name: variable_text(value) for name, value in stated.variables.items()}
    others = {
        name: _as_set(value)
        for name, value in lineage.variables.items()
        if values.get(name) != value or name in stated.sweep
    }
    recipe = _read(lineage.recipe, others, folder) if others else stated
    seed = recipe.seed if lineage.seed is None else lineage.seed
    return replace(recipe, folder=folder, fallback_folder=fallback, seed=seed)


def _read(text: str, overrides: Mapping[str, str], folder: Path) -> Recipe:
    return read_recipe("recipe in the lock", overrides, text=text, working_folder=folder)


def _as_set(value: Plain) -> str:
    """The text for ``--set`` that gives a variable this value."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        return value  # a list, as the lock has it
    return json.dumps(value)


@dataclass(frozen=True, slots=True)
class _Recipe:
    """A recipe whose steps are being listed, and those that have been."""

    recipe: Recipe
    lineage: Lineage
    seen: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Step:
    """A step that is to be listed."""

    depth: int
    name: str
    tree: _Recipe


_Item = Line | _Step


def _roots(lineage: Lineage, depth: int) -> list[_Item]:
    """What a lineage begins with: its step, or all it states when its recipe cannot be read."""
    recipe = locked_recipe(lineage)
    is_sound = any(step.name == lineage.step for step in recipe.steps) and not find_cycles(recipe.steps)
    if is_sound and not any(problem.severity == "error" for problem in recipe.problems):
        return [_Step(depth, lineage.step, _Recipe(recipe, lineage))]
    steps: list[_Item] = [Line(depth, name, text) for name, text in lineage.steps.items()]
    return [*steps, *(Line(depth, label, model=model) for label, model in lineage.models.items())]


def _inputs(item: _Step, step: Step) -> list[_Item]:
    found: list[_Item] = []
    names = {reference: alias for alias, reference in item.tree.recipe.models.items()}
    for source in dict.fromkeys(source for source, _ in named_sources(step)):
        if isinstance(source, StepReference):
            found.append(_Step(item.depth + 1, source.name, item.tree))
            continue
        model = item.tree.lineage.models.get(str(source)) or LockedModel(source.path, source.revision, "")
        found.append(Line(item.depth + 1, names.get(source, str(source)), model=model))
    return found
