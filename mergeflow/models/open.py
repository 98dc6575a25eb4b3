"""The one way in: a reference, as the recipe has it, becomes a `Checkpoint`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mergeflow.errors import CheckpointError
from mergeflow.models.adapter import delta_alone, with_adapters
from mergeflow.models.adapter_config import read_adapter_config
from mergeflow.models.adapter_tensors import Adapter, read_adapter_tensors
from mergeflow.models.block_scales import dequantised
from mergeflow.models.checkpoint import open_checkpoint
from mergeflow.models.digests import ignore_bytes
from mergeflow.models.experts import pack_experts
from mergeflow.models.hub import describe
from mergeflow.models.hub import download as download_checkpoint
from mergeflow.models.hub_cache import DEFAULT_HUB, Hub
from mergeflow.models.locate import locate
from mergeflow.models.records import Checkpoint
from mergeflow.models.weights import ADAPTER, ADAPTER_CONFIG, MODEL, Contents
from mergeflow.recipe.records import AdapterReference, ModelReference


@dataclass(frozen=True, slots=True)
class _Ways:
    """How whatever is opened is reached: where relative paths start, and the hub."""

    folders: Sequence[Path]
    download: bool
    on_bytes: Callable[[int], None]
    hub: Hub


def open_model(
    reference: ModelReference,
    folders: Sequence[Path],
    *,
    download: bool,
    on_bytes: Callable[[int], None] = ignore_bytes,
    commit: str | None = None,
    adapter_commits: Sequence[str | None] = (),
    hub: Hub = DEFAULT_HUB,
) -> Checkpoint:
    """Open a local folder or a hub model, its adapters added, its experts packed; or an adapter alone: a delta.

    Args:
        folders: where relative paths start, most important first.
        download: bring a hub model onto this machine; without it, headers are enough.
        on_bytes: told how many more bytes were downloaded.
        commit: what the reference was when it was opened before: a branch may have moved since. The model stays known
            by the reference as it is written.
        adapter_commits: the same of its adapters, in order.

    Raises:
        CheckpointError: it is not there, cannot be reached, or is damaged; an adapter does not fit.
        RunError: the download does not fit on the disk.
    """
    ways = _Ways(folders, download, on_bytes, hub)
    commits = [*adapter_commits, *(None for _ in reference.adapters)]
    opened = [_open_adapter(adapter, known, ways) for adapter, known in zip(reference.adapters, commits, strict=False)]
    adapters = [adapter for adapter, _ in opened]
    if reference.is_adapter:
        checkpoint = delta_alone(adapters[0], str(reference))
    else:
        path = ModelReference(reference.path, reference.revision)
        checkpoint = dequantised(replace(_open(path, commit, MODEL, ways), label=str(reference)))
        if adapters:
            checkpoint = with_adapters(checkpoint, adapters)
    return replace(
        checkpoint,
        tensors=pack_experts(checkpoint.tensors),
        adapter_revisions=tuple(revision for _, revision in opened),
    )


def _open_adapter(reference: AdapterReference, commit: str | None, ways: _Ways) -> tuple[Adapter, str | None]:
    """An adapter, and the commit a hub adapter was pinned to."""
    found = _open(ModelReference(reference.path, reference.revision), commit, ADAPTER, ways)
    config = read_adapter_config(found.config, f"{found.label}: {ADAPTER_CONFIG}")
    return read_adapter_tensors(found.tensors, config, found.label, reference.weight), found.revision


def _open(reference: ModelReference, commit: str | None, contents: Contents, ways: _Ways) -> Checkpoint:
    """What lies under a path or a hub id, taken for what `contents` says."""
    located = locate(reference, ways.folders)
    if located.folder is not None:
        return open_checkpoint(located.folder, str(reference), contents=contents)
    if located.repo_id is None:
        raise CheckpointError(f"{reference}: names neither a folder nor a hub model")
    revision = commit or located.revision
    try:
        found = describe(located.repo_id, revision, hub=ways.hub, label=str(reference), contents=contents)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {located.hint}") from error
    if not ways.download:
        return found
    return download_checkpoint(found, located.repo_id, located.revision, ways.on_bytes, hub=ways.hub, contents=contents)
