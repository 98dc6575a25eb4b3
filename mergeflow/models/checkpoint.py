"""A folder becomes a `Checkpoint`: names, shapes, dtypes and places of its tensors, from headers alone.

So does a file of weights by itself: a model without configuration, tokenizer or anything else. Which files of a folder
hold the weights, and how they are read, is said in `mergeflow.models.weights`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from mergeflow.errors import CheckpointError
from mergeflow.models.files import folder_files
from mergeflow.models.gguf import read_gguf, tell_of_tokenizer
from mergeflow.models.header import DELTA_MARK, read_header
from mergeflow.models.index import MAX_INDEX_BYTES, assemble, parse_index
from mergeflow.models.records import Checkpoint
from mergeflow.models.strict_json import read_object
from mergeflow.models.weights import GGUF, MODEL, READERS, SAFETENSORS, Contents, is_weights_file, read_weights
from mergeflow.recipe.nearest import nearest

MAX_CONFIG_BYTES = 20_000_000


def open_checkpoint(folder: Path, label: str, revision: str | None = None, *, contents: Contents = MODEL) -> Checkpoint:
    """Open the model (or the adapter, as `contents` says) in `folder`.

    Args:
        folder: of the model, or its only file.
        label: the model as the user wrote it; it begins every message about the folder as a whole.
        revision: the commit, when the folder is a snapshot of a hub model.

    Raises:
        CheckpointError: no such folder, no weights in it that can be read, or damaged ones.
    """
    if is_bare_file(folder) and contents is MODEL:
        return _open_bare_file(folder, label)
    _check_folder(folder, label)
    names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    found = contents.find(names, label, f"{folder}")
    weight_map = _read_index(folder, found.index) if found.index else {}
    shards = [found.file] if found.file else sorted(set(weight_map.values()))
    for shard in shards:
        if not (folder / shard).exists():
            raise CheckpointError(f"{folder / (found.index or '')}: names {shard!r}, which is not there")
    tensors = assemble({shard: read_weights(folder / shard) for shard in shards}, weight_map, f"{folder}")
    if not tensors:
        raise CheckpointError(f"{label}: {folder / shards[0]} holds no tensors")
    return Checkpoint(
        label=label,
        folder=Path(os.path.abspath(folder)),
        tensors=tensors,
        config=read_config(folder / contents.config) if contents.config in names else _own_config(folder / shards[0]),
        files=folder_files(folder).carried,
        revision=revision,
        is_delta=_is_delta(folder / shards[0]),
    )


def is_bare_file(path: Path) -> bool:
    """Whether a path names a file of weights, which is a model by itself."""
    return is_weights_file(path.name) and path.is_file()


def _open_bare_file(path: Path, label: str) -> Checkpoint:
    tensors = assemble({path.name: read_weights(path)}, {}, f"{path.parent}")
    if not tensors:
        raise CheckpointError(f"{label}: {path} holds no tensors")
    return Checkpoint(label, Path(os.path.abspath(path)), tensors, _own_config(path), is_delta=_is_delta(path))


def _is_delta(weights: Path) -> bool:
    name, value = DELTA_MARK
    return weights.suffix.lower() == SAFETENSORS and read_header(weights).metadata.get(name) == value


def _own_config(weights: Path) -> Mapping[str, object]:
    """The configuration that a file of weights brings along: a GGUF file's; other files have none."""
    if weights.suffix.lower() != GGUF:
        return {}
    tell_of_tokenizer(weights, [entry.name for entry in os.scandir(weights.parent)])
    return read_gguf(weights).config


def read_config(path: Path) -> Mapping[str, object]:
    """A model's config.json.

    Raises:
        CheckpointError: it cannot be read, or is not a JSON object.
    """
    return read_object(path, MAX_CONFIG_BYTES, unique=False)


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


def _read_index(folder: Path, name: str) -> Mapping[str, str]:
    path = folder / name
    try:
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise CheckpointError(f"{path}: larger than {MAX_INDEX_BYTES // 1_000_000} MB, which no index is")
        return parse_index(path.read_bytes(), str(path), name)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


def _check_folder(folder: Path, label: str) -> None:
    if folder.is_dir():
        if not os.access(folder, os.R_OK | os.X_OK):
            raise CheckpointError(f"{label}: {folder} cannot be read: no permission")
        return
    if folder.exists():
        raise CheckpointError(
            f"{label}: {folder} is a file, but not one of weights ({', '.join(READERS)}); "
            f"a model is named by its folder, {folder.parent}, or by such a file"
        )
    raise missing_folder(folder, label)
