"""A folder becomes a `Checkpoint`: names, shapes, dtypes and places of its tensors, from headers alone.

Which files hold the weights: the index when there is one (`model.safetensors.index.json`), else `model.safetensors`,
else the folder's only safetensors file. Anything else (several files without an index, pickled weights, a LoRA
adapter) is refused with the way out, never guessed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from mergeflow.errors import CheckpointError
from mergeflow.models.files import folder_files
from mergeflow.models.header import read_header
from mergeflow.models.index import INDEX_NAME, MAX_INDEX_BYTES, SINGLE_NAME, assemble, parse_index
from mergeflow.models.records import Checkpoint
from mergeflow.models.strict_json import read_object
from mergeflow.recipe.nearest import nearest

CONFIG_NAME = "config.json"
MAX_CONFIG_BYTES = 20_000_000
ADAPTER_NAMES = frozenset({"adapter_model.safetensors", "adapter_config.json"})


def open_checkpoint(folder: Path, label: str, revision: str | None = None) -> Checkpoint:
    """Open the model in `folder`.

    Args:
        label: the model as the user wrote it; it begins every message about the folder as a whole.
        revision: the commit, when the folder is a snapshot of a hub model.

    Raises:
        CheckpointError: no such folder, no weights in it that can be read, or damaged ones.
    """
    _check_folder(folder, label)
    names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    weight_map = _read_index(folder) if INDEX_NAME in names else {}
    shards = sorted(set(weight_map.values())) or [only_weights_file(names, label, f"{folder}")]
    for shard in shards:
        if not (folder / shard).exists():
            raise CheckpointError(f"{folder / INDEX_NAME}: names {shard!r}, which is not there")
    tensors = assemble({shard: read_header(folder / shard) for shard in shards}, weight_map)
    if not tensors:
        raise CheckpointError(f"{label}: {folder / shards[0]} holds no tensors")
    return Checkpoint(
        label=label,
        folder=Path(os.path.abspath(folder)),
        tensors=tensors,
        config=read_config(folder / CONFIG_NAME) if CONFIG_NAME in names else {},
        files=folder_files(folder).carried,
        revision=revision,
    )


def read_config(path: Path) -> Mapping[str, object]:
    """A model's config.json.

    Raises:
        CheckpointError: it cannot be read, or is not a JSON object.
    """
    return read_object(path, MAX_CONFIG_BYTES, unique=False)


def only_weights_file(names: Iterable[str], label: str, place: str) -> str:
    """The file that holds the weights in a folder without an index, chosen from the names of its files.

    Raises:
        CheckpointError: there is none, or more than one.
    """
    listed = set(names)
    candidates = sorted(name for name in listed if name.endswith(".safetensors"))
    if SINGLE_NAME in listed:
        return SINGLE_NAME
    if listed & ADAPTER_NAMES and set(candidates) <= ADAPTER_NAMES:
        raise CheckpointError(
            f"{label}: {place} holds a LoRA adapter, not a model; write it behind its base: BASE+{label}"
        )
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise CheckpointError(
            f"{label}: {place} holds {len(candidates)} safetensors files ({candidates[0]}, ...), "
            f"but neither {SINGLE_NAME} nor {INDEX_NAME}"
        )
    pickled = sorted(name for name in listed if name.endswith((".bin", ".pt", ".pth")))
    if pickled:
        raise CheckpointError(
            f"{label}: {place} holds only pickled weights ({pickled[0]}), which this version does not read; "
            "load it in transformers and save it again with save_pretrained() to get safetensors"
        )
    raise CheckpointError(f"{label}: no safetensors file in {place}")


def missing_folder(folder: Path, label: str) -> CheckpointError:
    """The error for a folder that is not there; it offers the name nearest to the part that is wrong."""
    wrong = folder
    while not wrong.parent.is_dir() and wrong != wrong.parent:
        wrong = wrong.parent
    guess = nearest_folder(wrong)
    return CheckpointError(f"{label}: no such folder: {folder}" + (f"; did you mean {str(guess)!r}?" if guess else ""))


def nearest_folder(folder: Path) -> Path | None:
    """The folder beside `folder` whose name is most like it, when one is."""
    try:
        beside = [entry.name for entry in os.scandir(folder.parent) if entry.is_dir()]
    except OSError:
        return None
    guess = nearest(folder.name, beside)
    return folder.parent / guess if guess else None


def _read_index(folder: Path) -> Mapping[str, str]:
    path = folder / INDEX_NAME
    try:
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise CheckpointError(f"{path}: larger than {MAX_INDEX_BYTES // 1_000_000} MB, which no index is")
        return parse_index(path.read_bytes(), str(path))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


def _check_folder(folder: Path, label: str) -> None:
    if folder.is_dir():
        if not os.access(folder, os.R_OK | os.X_OK):
            raise CheckpointError(f"{label}: {folder} cannot be read: no permission")
        return
    if folder.exists():
        raise CheckpointError(f"{label}: {folder} is a file; a model is named by its folder, {folder.parent}")
    raise missing_folder(folder, label)
