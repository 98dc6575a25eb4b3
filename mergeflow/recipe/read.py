"""From a file to a `Recipe`: the one entrance to this room.

Reading never raises for what a user wrote. Whatever is wrong is in `Recipe.problems`, in the order of the file, and
what could be read is there beside it, so that later checks add their findings and all are reported at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from mergeflow.errors import Position, Problem
from mergeflow.recipe.candidates import candidate_names
from mergeflow.recipe.document import Document, document_path, parse_documents
from mergeflow.recipe.findings import Findings, in_file_order
from mergeflow.recipe.mergekit import read_mergekit
from mergeflow.recipe.native import read_native
from mergeflow.recipe.nearest import nearest
from mergeflow.recipe.nodes import BrokenNode, MapNode, Node, is_null, kind_of
from mergeflow.recipe.records import Form, Recipe
from mergeflow.recipe.sweep import Chosen, Sweep, merged_problems, read_sweep
from mergeflow.recipe.text import read_text
from mergeflow.recipe.variables import plain_value

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
        overrides: values for variables of a native recipe, as YAML text (``--set name=value``); several with
            commas between them are a sweep.
        text: the contents, instead of reading the file.
        working_folder: the current folder when None: where a mergekit file's paths start.

    Returns:
        the recipe; `problems` holds every mistake (errors) and doubt (warnings). It runs only without errors. Those
        of a recipe with a sweep are the ones of all its candidates.
    """
    file = str(path)
    current = working_folder or _current_folder()
    content = read_text(current / path, file) if text is None else text
    if isinstance(content, Problem):
        documents: tuple[Document, ...] = (Document(None, (content,)),)
        content = ""
    else:
        documents = parse_documents(content, file)
    form = _form(documents, content)
    own_folder = (current / path).parent
    folder, fallback = (own_folder, None) if form == "native" else (current, own_folder)
    empty = Recipe(file, content, form, folder, steps=(), outputs=(), fallback_folder=fallback)
    findings = Findings(form)
    for document in documents:
        findings.problems += document.problems
        findings.problems += (_judged(problem, findings) for problem in document.duplicates)
    recipe = _fill(empty, [document.root for document in documents], overrides, findings)
    return replace(recipe, problems=in_file_order(findings.problems))


def _fill(empty: Recipe, roots: Sequence[Node | None], overrides: Mapping[str, str], findings: Findings) -> Recipe:
    """`empty` with what the documents say; what is wrong with them goes to `findings`."""
    maps = [root for root in roots if isinstance(root, MapNode)]
    for index, root in enumerate(roots):
        if not isinstance(root, MapNode):
            _report_no_recipe(root, empty.file, document_path(index) if len(roots) > 1 else "", findings)
    if len(maps) < len(roots):
        return empty
    if empty.form == "mergekit":
        steps, outputs = read_mergekit(maps, overrides, empty.folder, findings)
        return replace(empty, steps=steps, outputs=outputs)
    if len(maps) > 1:
        message = "a recipe with 'steps:' is one document: the merges of this one belong under 'steps:' too"
        findings.error(message, maps[1].position, document_path(1))
        return empty
    sweep = read_sweep(maps[0], overrides, findings)
    if not sweep.values:
        return _native(empty, maps[0], sweep, Chosen(fixed=sweep.fixed, places=sweep.places), findings)
    return _swept(empty, maps[0], sweep, findings)


def _native(empty: Recipe, root: MapNode, sweep: Sweep, chosen: Chosen, findings: Findings) -> Recipe:
    """The recipe with one value for each variable."""
    native = read_native(root, sweep.overrides, empty.folder, findings, chosen)
    return replace(
        empty,
        steps=native.steps,
        outputs=native.outputs,
        models=native.models,
        variables=native.variables,
        seed=native.seed,
        positions=native.positions,
    )


def _swept(empty: Recipe, root: MapNode, sweep: Sweep, findings: Findings) -> Recipe:
    """The recipe of the first candidate, with those of all beside it."""
    choices = list(sweep.choices())
    candidates: list[Recipe] = []
    for name, choice in zip(candidate_names(choices), choices, strict=True):
        own = Findings(findings.form)
        read = _native(empty, root, sweep, Chosen(name, choice, sweep.fixed, sweep.places), own)
        problems = in_file_order([*findings.problems, *own.problems])
        candidates.append(replace(read, candidate=name, problems=problems))
    common = set(findings.problems)
    findings.problems += [
        problem
        for problem in merged_problems({candidate.candidate: candidate.problems for candidate in candidates})
        if problem not in common
    ]
    values = {
        name: tuple(plain_value(node) for node in nodes if not isinstance(node, BrokenNode))
        for name, nodes in sweep.values.items()
    }
    return replace(candidates[0], candidate="", sweep=values, candidates=tuple(candidates))


def _form(documents: Sequence[Document], text: str) -> Form:
    """A file is native when it says so, or when only a native recipe could look like it."""
    return "native" if any(_is_native(document.root, text) for document in documents) else "mergekit"


def _is_native(root: Node | None, text: str) -> bool:
    if not isinstance(root, MapNode):
        return "mergeflow:" in text
    keys = [entry.key for entry in root.entries]
    if "mergeflow" in keys:
        return True
    is_merge = "merge_method" in keys
    return not is_merge and ("steps" in keys or nearest("mergeflow", keys, cutoff=0.8) is not None)


def _judged(duplicate: Problem, findings: Findings) -> Problem:
    """A key written twice: mergekit takes the last one without a word."""
    return replace(duplicate, severity="warning") if findings.tolerant else duplicate


def _report_no_recipe(root: Node | None, file: str, path: str, findings: Findings) -> None:
    if root is None and findings.problems:
        return
    if root is None or is_null(root):
        findings.error("the file is empty", Position(file, 1, 1))
    elif not isinstance(root, BrokenNode):
        findings.error(f"a recipe is a mapping of fields to values, not {kind_of(root)}", root.position, path)


def _current_folder() -> Path:
    try:
        return Path.cwd()
    except OSError:  # it was deleted
        return Path()
