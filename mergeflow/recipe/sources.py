"""What a step reads: another step, a name of `models`, or a checkpoint.

A text means the step or the name of `models` that is called so (no name is both), else a folder or hub id. Either may
have an adapter (``chat+./lora``), and an adapter may be a name. Nothing tells a mistyped step from a hub id without a
slash (``gpt2``) except its looks: a bare word that is no folder and nearly a name of the recipe is taken for a mistake.
Where it is none, ``word@main`` or ``{path: word}`` says so. (In a mergekit file, which must run unchanged, it is a
warning, and the word stays what it is.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mergeflow.errors import Position
from mergeflow.recipe.findings import Findings
from mergeflow.recipe.nearest import nearest, quoted
from mergeflow.recipe.nodes import Node
from mergeflow.recipe.records import AdapterReference, ModelReference, Source, StepReference
from mergeflow.recipe.references import AdaptedStep, Find, as_written, read_adapter, read_with_adapters

# One letter swapped, missing or added in a four-letter name gives 0.75 to 0.89.
BARE_WORD_CUTOFF = 0.75


@dataclass(frozen=True, slots=True)
class Adapted:
    """A step's result with adapters added to it, and the field that asks for it first."""

    step: AdaptedStep
    position: Position
    path: str


@dataclass(frozen=True, slots=True)
class Names:
    """What names mean in one recipe, and the folder in which its paths start.

    `steps` maps each step to its place; `models` each name to its checkpoint, None when that could not be read
    (and was reported). `adapted` gathers, while steps are read, those that are wanted with an adapter
    (``halfway+./lora``), by the name of the step that adds it.
    """

    steps: Mapping[str, Position]
    models: Mapping[str, ModelReference | None]
    folder: Path
    adapted: dict[str, Adapted] = field(default_factory=dict)

    def all(self) -> tuple[str, ...]:
        """Every name, steps first."""
        return (*self.steps, *self.models)

    def __contains__(self, name: str) -> bool:
        return name in self.steps or name in self.models


def read_source(node: Node, names: Names | None, path: str, findings: Findings, reader: str = "") -> Source | None:
    """The source a node names; None, reported, when it names none.

    Args:
        names: what names mean; None in a mergekit file of one document, where every text is a checkpoint.
        reader: the step that reads it, never guessed for a mistyped name.
    """
    source = read_with_adapters(node, path, findings, _finder(names, findings, reader))
    if not isinstance(source, AdaptedStep):
        return source
    if names is not None:
        names.adapted.setdefault(str(source), Adapted(source, node.position, path))
    return StepReference(str(source))


def read_adapter_source(node: Node, names: Names | None, path: str, findings: Findings) -> AdapterReference | None:
    """The adapter a node names; None, reported, when it names none."""
    return read_adapter(node, path, findings, _finder(names, findings, ""))


def _finder(names: Names | None, findings: Findings, reader: str) -> Find:
    if names is None:
        return as_written
    known = names
    return lambda name, revision, node, path: _find(name, revision, known, node, path, findings, reader)


def _find(
    text: str, revision: str | None, names: Names, node: Node, path: str, findings: Findings, reader: str
) -> Source | None:
    if text in names:
        if revision is not None:
            _report_revision(text, revision, names, node, path, findings)
        return _named(text, names)
    guess = _meant(text, names, reader) if revision is None else None
    if guess is None:
        return ModelReference(text, revision)
    kind = "step" if guess in names.steps else "model"
    message = f"no step, model or folder is called {quoted(text)}; did you mean the {kind} {quoted(guess)}?"
    if findings.tolerant:
        findings.warning(message, node.position, path)
        return ModelReference(text)
    findings.error(f"{message} (a hub id of that name is written {quoted(text + '@main')})", node.position, path)
    findings.guesses.add((reader, guess))
    return _named(guess, names)


def _report_revision(name: str, revision: str, names: Names, node: Node, path: str, findings: Findings) -> None:
    shown = quoted(f"{name}@{revision}")
    if findings.tolerant:
        findings.warning(f"{shown}: {quoted(name)} is a document of this file, without revisions", node.position, path)
    elif name in names.steps:
        findings.error(f"{shown}: a step of this recipe has no revisions", node.position, path)
    else:
        message = f"{shown}: a name of this recipe takes no revision here; give it under 'models:'"
        findings.error(message, node.position, path)


def _named(name: str, names: Names) -> Source | None:
    # A name that both have was reported; taken for the model, it makes no cycle.
    return names.models[name] if name in names.models else StepReference(name)


def _meant(word: str, names: Names, reader: str) -> str | None:
    """The name a bare word that is no folder was probably meant to be."""
    if any(sign in word for sign in "/\\@+") or word.startswith((".", "~")):
        return None
    guess = nearest(word, [name for name in names.all() if name != reader], BARE_WORD_CUTOFF)
    return guess if guess is not None and not _is_there(names.folder, word) else None


def _is_there(folder: Path, word: str) -> bool:
    try:
        return (folder / word).exists()
    except (OSError, ValueError):
        return False
