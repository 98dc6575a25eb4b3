"""From a file to a `Recipe`: the one entrance to this room.

Reading never raises for what a user wrote. Whatever is wrong is in `Recipe.problems`, in the order of the file, and
what could be read is there beside it, so that later checks add their findings and all are reported at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from mergeflow.errors import Position, Problem
from mergeflow.recipe.document import Document, parse
from mergeflow.recipe.findings import Findings, in_file_order
from mergeflow.recipe.mergekit import read_mergekit
from mergeflow.recipe.native import read_native
from mergeflow.recipe.nearest import nearest
from mergeflow.recipe.nodes import BrokenNode, MapNode, Node, is_null, kind_of
from mergeflow.recipe.records import Form, Recipe
from mergeflow.recipe.text import read_text

NO_OVERRIDES: Mapping[str, str] = MappingProxyType({})


def read_recipe(
    path: Path | str,
    overrides: Mapping[str, str] = NO_OVERRIDES,
    *,
    text: str | None = None,
    working_folder: Path | None = None,
) -> Recipe:
    """Reads a native recipe or a mergekit file.

    Args:
        path: the file, from `working_folder` when relative. It names the recipe in messages, and its folder is where
            a native recipe's paths start.
        overrides: values for variables of a native recipe, as YAML text (``--set name=value``).
        text: the contents, instead of reading the file.
        working_folder: the current folder when None: where a mergekit file's paths start.

    Returns:
        the recipe; `problems` holds every mistake (errors) and doubt (warnings). It runs only without errors.
    """
    file = str(path)
    current = working_folder or _current_folder()
    content = read_text(current / path, file) if text is None else text
    if isinstance(content, Problem):
        document, content = Document(None, (content,)), ""
    else:
        document = parse(content, file)
    form = _form(document.root, content)
    own_folder = (current / path).parent
    folder, fallback = (own_folder, None) if form == "native" else (current, own_folder)
    empty = Recipe(file, content, form, folder, steps=(), outputs=(), fallback_folder=fallback)
    findings = Findings(form)
    findings.problems += document.problems
    findings.problems += (_judged(problem, findings) for problem in document.duplicates)
    recipe = _fill(empty, document.root, overrides, findings)
    return replace(recipe, problems=in_file_order(findings.problems))


def _fill(empty: Recipe, root: Node | None, overrides: Mapping[str, str], findings: Findings) -> Recipe:
    """`empty` with what the document says; what is wrong with it goes to `findings`."""
    if not isinstance(root, MapNode):
        _report_no_recipe(root, empty.file, findings)
        return empty
    if empty.form == "mergekit":
        steps, outputs = read_mergekit(root, overrides, findings)
        return replace(empty, steps=steps, outputs=outputs)
    native = read_native(root, overrides, empty.folder, findings)
    return replace(
        empty,
        steps=native.steps,
        outputs=native.outputs,
        models=native.models,
        variables=native.variables,
        seed=native.seed,
        positions=native.positions,
    )


def _form(root: Node | None, text: str) -> Form:
    """A file is native when it says so, or when only a native recipe could look like it."""
    if not isinstance(root, MapNode):
        return "native" if "mergeflow:" in text else "mergekit"
    keys = [entry.key for entry in root.entries]
    if "mergeflow" in keys:
        return "native"
    is_merge = "merge_method" in keys
    return "native" if not is_merge and ("steps" in keys or nearest("mergeflow", keys, cutoff=0.8)) else "mergekit"


def _judged(duplicate: Problem, findings: Findings) -> Problem:
    """A key written twice: mergekit takes the last one without a word."""
    return replace(duplicate, severity="warning") if findings.tolerant else duplicate


def _report_no_recipe(root: Node | None, file: str, findings: Findings) -> None:
    if root is None and findings.problems:
        return
    if root is None or is_null(root):
        findings.error("the file is empty", Position(file, 1, 1))
    elif not isinstance(root, BrokenNode):
        findings.error(f"a recipe is a mapping of fields to values, not {kind_of(root)}", root.position)


def _current_folder() -> Path:
    try:
        return Path.cwd()
    except OSError:  # it was deleted
        return Path()
