"""Finding the inputs of an output again: where they were, or in a folder somebody names.

A lock says what an input was called, never where it lay. In this order:

1. in the folder of ``--models``: under the path that the recipe has, else under its last name alone;
2. where the recipe's paths start: its own folder as this machine remembers it, else the current folder;
3. a hub model at the locked revision, when it is on this machine. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mergeflow.errors import CheckpointError
from mergeflow.models.open import open_model
from mergeflow.models.records import Checkpoint
from mergeflow.models.tokenizer_files import with_tokenizer
from mergeflow.output.lineage import LockedModel
from mergeflow.recipe.places import named_sources
from mergeflow.recipe.records import AdapterReference, ModelReference, Recipe
from mergeflow.recipe.tokenizers import models_with_templates, models_with_tokenizers
from mergeflow.workflow.models import is_elsewhere


@dataclass(frozen=True, slots=True)
class FoundInputs:
    """The inputs that are on this machine, and for each other one why it is not."""

    checkpoints: Mapping[ModelReference, Checkpoint]
    missing: tuple[str, ...]


def find_inputs(
    recipe: Recipe, locked: Mapping[str, LockedModel], folders: Sequence[Path], models: Path | None
) -> FoundInputs:
    """Open every model that the steps of a recipe name, from headers alone.

    Args:
        locked: the inputs of the lock by label; hub models are opened at their revision.
        folders: where relative paths start, most important first.
        models: the folder of ``--models``.
    """
    checkpoints: dict[ModelReference, Checkpoint] = {}
    missing: list[str] = []
    named = dict.fromkeys(source for step in recipe.steps for source, _ in named_sources(step))
    for reference in named:
        if isinstance(reference, ModelReference):
            found = _find(reference, recipe, locked.get(str(reference)), folders, models)
            if isinstance(found, Checkpoint):
                checkpoints[reference] = found
            else:
                missing.append(found)
    return FoundInputs(checkpoints, tuple(missing))


def _find(
    reference: ModelReference,
    recipe: Recipe,
    locked: LockedModel | None,
    folders: Sequence[Path],
    models: Path | None,
) -> Checkpoint | str:
    """The model at the first place that has it, or why the last one has not."""
    reason = ""
    for candidate, places in _candidates(_pinned(reference, locked), folders, models):
        try:
            found = _open(candidate, reference, recipe, places)
        except CheckpointError as error:
            reason = str(error)
        except OSError as error:
            reason = f"{reference}: {error.strerror or error}"
        else:
            if not is_elsewhere(found):
                return found
            reason = f"{reference}: it is on the hub, and not on this machine"
    return reason


def _open(candidate: ModelReference, reference: ModelReference, recipe: Recipe, places: Sequence[Path]) -> Checkpoint:
    found = open_model(candidate, places, download=False)
    if reference in models_with_tokenizers(recipe):
        return with_tokenizer(found, candidate, places, "tokenizer")
    return (
        with_tokenizer(found, candidate, places, "chat template")
        if reference in models_with_templates(recipe)
        else found
    )


def _candidates(
    reference: ModelReference, folders: Sequence[Path], models: Path | None
) -> Iterator[tuple[ModelReference, Sequence[Path]]]:
    if models is not None:
        yield reference, [models]
        yield _by_last_name(reference, models), [models]
    yield reference, folders


def _pinned(reference: ModelReference, locked: LockedModel | None) -> ModelReference:
    """The reference at the commit it was resolved to; one of a folder has none."""
    if locked is None:
        return reference
    adapters = tuple(
        replace(adapter, revision=was.revision) if was.revision is not None else adapter
        for adapter, was in zip(reference.adapters, locked.adapters, strict=False)
    )
    kept = adapters if len(adapters) == len(reference.adapters) else reference.adapters
    return replace(reference, revision=locked.revision or reference.revision, adapters=kept)


def _by_last_name(reference: ModelReference, models: Path) -> ModelReference:
    """The same model and adapters as folders in `models`, whatever folder they were in."""

    def placed(path: str) -> str:
        return str(models.absolute() / Path(path).name)

    adapters = tuple(AdapterReference(placed(it.path), None, it.weight) for it in reference.adapters)
    return ModelReference(placed(reference.path) if reference.path else "", None, adapters)
