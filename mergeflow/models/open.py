"""The one way in: a reference, as the recipe has it, becomes a `Checkpoint`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from mergeflow.errors import CheckpointError
from mergeflow.models.checkpoint import open_checkpoint
from mergeflow.models.digests import ignore_bytes
from mergeflow.models.experts import pack_experts
from mergeflow.models.hub import describe
from mergeflow.models.hub import download as download_checkpoint
from mergeflow.models.hub_cache import DEFAULT_HUB, Hub
from mergeflow.models.locate import Located, locate
from mergeflow.models.records import Checkpoint
from mergeflow.recipe.records import ModelReference


def open_model(
    reference: ModelReference,
    folders: Sequence[Path],
    *,
    download: bool,
    on_bytes: Callable[[int], None] = ignore_bytes,
    commit: str | None = None,
    hub: Hub = DEFAULT_HUB,
) -> Checkpoint:
    """Open a local folder or a hub model, its experts packed.

    Args:
        folders: where relative paths start, most important first.
        download: bring a hub model onto this machine; without it, headers are enough.
        on_bytes: told how many more bytes were downloaded.
        commit: what the reference was when it was opened before: a branch may have moved since. The model stays known
            by the reference as it is written.

    Raises:
        CheckpointError: it is not there, cannot be reached, or is damaged.
        RunError: the download does not fit on the disk.
    """
    if reference.adapter:
        raise CheckpointError(f"{reference}: LoRA adapters are not supported yet; merge it into its base and save that")
    located = locate(reference, folders)
    if located.folder is not None:
        checkpoint = open_checkpoint(located.folder, str(reference))
    else:
        described = _from_hub(located, str(reference), commit or located.revision, hub)
        checkpoint = _downloaded(described, located, on_bytes, hub) if download else described
    return replace(checkpoint, tensors=pack_experts(checkpoint.tensors))


def _from_hub(located: Located, label: str, revision: str | None, hub: Hub) -> Checkpoint:
    if located.repo_id is None:
        raise CheckpointError(f"{label}: names neither a folder nor a hub model")
    try:
        return describe(located.repo_id, revision, hub=hub, label=label)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {located.hint}") from error


def _downloaded(checkpoint: Checkpoint, located: Located, on_bytes: Callable[[int], None], hub: Hub) -> Checkpoint:
    assert located.repo_id is not None  # it was described under it
    return download_checkpoint(checkpoint, located.repo_id, located.revision, on_bytes, hub=hub)
