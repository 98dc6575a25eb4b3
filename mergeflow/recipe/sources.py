"""What a step reads: another step, a name of `models`, or a checkpoint.

A text means the step or the name of `models` that is called so (no name is both), else a folder or hub id. Nothing
tells a mistyped step from a hub id without a slash (``gpt2``) except its looks: a bare word that is no folder and
nearly a name of the recipe is taken for a mistake. Where it is none, ``word@main`` or ``{path: word}`` says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mergeflow.errors import Position
from mergeflow.recipe.fields import read_text_value
from mergeflow.recipe.findings import Findings
from mergeflow.recipe.nearest import nearest, quoted
from mergeflow.recipe.nodes import MapNode, Node
from mergeflow.recipe.records import ModelReference, Source, StepReference
from mergeflow.recipe.references import read_reference, read_reference_text

# One letter swapped, missing or added in a four-letter name gives 0.75 to 0.89.
BARE_WORD_CUTOFF = 0.75


@dataclass(frozen=True, slots=True)
class Names:
    """What names mean in one recipe, and the folder in which its paths start.

    `steps` maps each step to its place; `models` each name to its checkpoint, None when that could not be read
    (and was reported).
    """

    steps: Mapping[str, Position]
    models: Mapping[str, ModelReference | None]
    folder: Path

    def all(self) -> tuple[str, ...]:
        """Every name, steps first."""
        return (*self.steps, *self.models)

    def __contains__(self, name: str) -> bool:
        return name in self.steps or name in self.models


def read_source(node: Node, names: Names | None, path: str, findings: Findings, reader: str = "") -> Source | None:
    """The source a node names; None, reported, when it names none.

    Args:
        names: what names mean; None in a mergekit file, where every text is a checkpoint.
        reader: the step that reads it, never guessed for a mistyped name.
    """
    if names is None or isinstance(node, MapNode):
        return read_reference(node, path, findings)
    text = read_text_value(node, path, findings)
    if text is None:
        return None
    if text in names:
        return _named(text, names)
    guess = _meant(text, names, reader)
    if guess is not None:
        kind = "step" if guess in names.steps else "model"
        message = f"no step, model or folder is called {quoted(text)}; did you mean the {kind} {quoted(guess)}?"
        findings.error(f"{message} (a hub id of that name is written {quoted(text + '@main')})", node.position, path)
        findings.guesses.add((reader, guess))
        return _named(guess, names)
    return _checkpoint(text, node, names, path, findings)


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


def _checkpoint(text: str, node: Node, names: Names, path: str, findings: Findings) -> ModelReference | None:
    reference = read_reference_text(text, node, path, findings)
    if reference is not None and reference.path in names:
        message = f"{quoted(text)}: a name of this recipe takes no revision or adapter here; give it under 'models:'"
        findings.error(message, node.position, path)
        named = _named(reference.path, names)
        return named if isinstance(named, ModelReference) else None
    return reference
