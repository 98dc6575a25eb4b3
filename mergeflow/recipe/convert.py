"""A mergekit file in the native form: the same text, under `steps`, with its comments.

A step is a mergekit configuration, so each document's text is kept, indented under its name. Changed is only what
would mean something else in a native recipe:

- a field that mergekit ignores is an error there: it becomes a comment;
- `name` is the step's name;
- paths start in the recipe's folder, not in the current one;
- ``${`` would start a variable: it is doubled.

What comes out is read again and compared with what went in.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from mergeflow.errors import Problem, RecipeError
from mergeflow.recipe.adapted import is_written
from mergeflow.recipe.describe import describe_step
from mergeflow.recipe.document import document_path
from mergeflow.recipe.nodes import join
from mergeflow.recipe.places import named_sources
from mergeflow.recipe.read import read_recipe
from mergeflow.recipe.records import Input, Parameters, Recipe, Slice, Step
from mergeflow.recipe.text_edits import Edit, apply, compose, fields, replaced, without

# What the step of a file without names may be called: the first that means nothing else in it.
STEP_NAMES = ("merge", "merged", "result", "converted_merge")
_MARK = re.compile(r"(?:---|\.\.\.)(?=\s|$)")
INDENT = "    "


def convert(recipe: Recipe, ignored: Collection[str], folder: Path) -> str:
    """The native form of a mergekit file.

    Args:
        recipe: the file, read without errors.
        ignored: paths of fields without effect, beside those that are unknown.
        folder: where the native recipe will stand: its paths start there.

    Raises:
        RecipeError: the file has errors, is a native recipe, or says something that the native form cannot.
    """
    errors = [problem for problem in recipe.problems if problem.severity == "error"]
    if errors:
        raise RecipeError(errors)
    if recipe.form == "native":
        raise RecipeError([Problem(f"{recipe.file} is a native recipe already")])
    recipe = replace(recipe, steps=tuple(filter(is_written, recipe.steps)))
    gone = {*ignored, *(problem.path for problem in recipe.problems if problem.message.startswith("unknown field"))}
    names = [[*(step.name for step in recipe.steps)]]
    if len(recipe.steps) == 1:
        names += [[name] for name in STEP_NAMES]
    for candidates in names:
        text = _native(recipe, candidates, gone, None)
        if _says_the_same(recipe, candidates, text, gone):
            break
    else:
        rule = "use anchors less, or give its steps other names"
        raise RecipeError([Problem(f"{recipe.file} cannot be converted line by line: {rule}")])
    moved = _native(recipe, candidates, gone, folder)
    problems = read_recipe(recipe.file, text=moved, working_folder=folder).problems
    if any(problem.severity == "error" for problem in problems):
        raise RecipeError(problems)
    return moved


def _says_the_same(recipe: Recipe, names: list[str], text: str, gone: Collection[str]) -> bool:
    """Whether a text means what the recipe means, but for the parameters that are gone and the names of the steps."""
    read = read_recipe(recipe.file, text=text)
    steps = [*filter(is_written, read.steps)]
    if any(problem.severity == "error" for problem in read.problems) or len(steps) != len(recipe.steps):
        return False
    outputs = [names[[step.name for step in recipe.steps].index(output.step)] for output in recipe.outputs]
    wanted = [
        _meaning(replace(_without_settings(step, gone), name=name))
        for step, name in zip(recipe.steps, names, strict=True)
    ]
    return wanted == [*map(_meaning, steps)] and outputs == [output.step for output in read.outputs]


def _meaning(step: Step) -> tuple[object, ...]:
    """What a step says, without places; a step and a model of one name are not the same."""
    return describe_step(step), [(type(source), path) for source, path in named_sources(step)]


def _without_settings(step: Step, gone: Collection[str]) -> Step:
    """The step without the parameters that stand at some paths of the file."""
    places = {place for path, place in step.positions.items() if join(step.path, path) in gone}

    def kept(parameters: Parameters) -> Parameters:
        return {name: setting for name, setting in parameters.items() if setting.position not in places}

    def inputs(entries: tuple[Input, ...]) -> tuple[Input, ...]:
        return tuple(replace(entry, parameters=kept(entry.parameters)) for entry in entries)

    def slices(parts: tuple[Slice, ...]) -> tuple[Slice, ...]:
        return tuple(replace(part, inputs=inputs(part.inputs), parameters=kept(part.parameters)) for part in parts)

    modules = (
        replace(one, inputs=inputs(one.inputs), slices=slices(one.slices), parameters=kept(one.parameters))
        for one in step.modules
    )
    return replace(
        step,
        inputs=inputs(step.inputs),
        slices=slices(step.slices),
        modules=tuple(modules),
        parameters=kept(step.parameters),
    )


def _native(recipe: Recipe, names: list[str], gone: Collection[str], folder: Path | None) -> str:
    source = Path(recipe.file).name
    lines = [f"# Converted from {source} by `mergeflow convert`.", "mergeflow: 1", "steps:"]
    for name, body in zip(names, _bodies(_edited(recipe, gone, folder)), strict=True):
        lines += [f"  {name}:", *(INDENT + line if line.strip() else "" for line in body)]
    lines += ["outputs:"]
    for output in recipe.outputs:
        name = names[[step.name for step in recipe.steps].index(output.step)]
        lines.append(f"  {name}:  # a folder, such as ./{name}; without one it is given to `mergeflow run`")
    return "\n".join(lines) + "\n"


def _edited(recipe: Recipe, gone: Collection[str], folder: Path | None) -> str:
    """The file's text with what must change in its documents, where they stand."""
    edits: list[Edit] = []
    roots = compose(recipe.text)
    for index, root in enumerate(roots):
        prefix = f"{document_path(index)}." if len(roots) > 1 else ""
        paths = {path.removeprefix(prefix) for path in gone if path.startswith(prefix)} | {"name"}
        edits += without(recipe.text, root, paths)
        if folder is not None:
            edits += _moves(recipe, index, root, folder)
    return apply(recipe.text, edits).replace("${", "$${")


def _bodies(text: str) -> Iterator[list[str]]:
    """The lines of each document that is not empty."""
    body: list[str] = []
    for line in [*text.splitlines(), "---"]:
        if line.startswith("%") and not body:
            continue
        mark = _MARK.match(line)
        if mark is None:
            body.append(line)
            continue
        if _has_content(body):
            yield _trimmed(body)
            body = []
        rest = line[3:].strip()
        body += [rest] if line.startswith("---") and rest else []


def _has_content(lines: list[str]) -> bool:
    return any(line.strip() and not line.lstrip().startswith("#") for line in lines)


def _trimmed(lines: list[str]) -> list[str]:
    while lines and not lines[-1].strip():
        lines = lines[:-1]
    while lines and not lines[0].strip():
        lines = lines[1:]
    return lines


def _moves(recipe: Recipe, index: int, root: Any, folder: Path) -> Iterator[Edit]:
    """The edits for the paths of models that would be others, seen from the recipe's folder."""
    nodes = {field.path: field.value for field in fields(root)}
    for _, path in named_sources(recipe.steps[index]):
        node = nodes.get(path)
        for scalar, is_split in _reference_texts(node):
            moved = _moved(scalar.value, recipe, folder, is_split=is_split)
            if moved != scalar.value:
                yield replaced(recipe.text, scalar, moved)


def _reference_texts(node: Any) -> Iterator[tuple[Any, bool]]:
    """The scalars of a reference that hold paths, and whether signs in them have a meaning."""
    if isinstance(node, yaml.ScalarNode):
        yield node, True
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value in ("model", "lora", "path"):
                yield from ((text, split and key.value != "path") for text, split in _reference_texts(value))
            elif key.value == "adapters" and isinstance(value, yaml.SequenceNode):
                for item in value.value:
                    yield from _reference_texts(item)


def _moved(text: str, recipe: Recipe, folder: Path, *, is_split: bool) -> str:
    """The text of a reference from the folder of the native recipe."""
    if not is_split:
        return _moved_path(text, recipe, folder)
    parts = (part.partition("@") for part in text.split("+"))
    return "+".join(_moved_path(path, recipe, folder) + sign + revision for path, sign, revision in parts)


def _moved_path(path: str, recipe: Recipe, folder: Path) -> str:
    is_step = len(recipe.steps) > 1 and any(step.name == path for step in recipe.steps)
    if is_step or path.startswith(("/", "~")):
        return path
    starts = [recipe.folder, *([recipe.fallback_folder] if recipe.fallback_folder is not None else [])]
    places = [start / path for start in starts if (start / path).exists()]
    if not places and not path.startswith("."):
        return path  # a hub id
    place = places[0] if places else starts[0] / path
    if os.path.abspath(folder / path) == os.path.abspath(place):
        return path
    moved = Path(os.path.relpath(place, folder)).as_posix()
    return moved if moved.startswith(".") else f"./{moved}"
