"""The tokenizer of an opened model, from its folder or from the hub: read only when a recipe needs it.

A hub model that is not on this machine yet gives its tokenizer's files alone, into the hub's cache, as config.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from mergeflow.errors import CheckpointError
from mergeflow.models.hub import small_file
from mergeflow.models.hub_cache import DEFAULT_HUB, Hub
from mergeflow.models.locate import locate
from mergeflow.models.records import Checkpoint
from mergeflow.models.tokenizer import MAX_BYTES, Read, read_chat_template, read_tokenizer
from mergeflow.recipe.records import ModelReference

Wanted = Literal["tokenizer", "chat template"]


def with_tokenizer(
    checkpoint: Checkpoint,
    reference: ModelReference,
    folders: Sequence[Path],
    wanted: Wanted,
    *,
    hub: Hub = DEFAULT_HUB,
) -> Checkpoint:
    """The checkpoint, knowing its tokenizer (or only its chat template), if it has one.

    Args:
        folders: where relative paths start, as for `open_model`.

    Raises:
        CheckpointError: the tokenizer is damaged, is there in another form, or the hub cannot be reached.
    """
    read = _from_folder(checkpoint.folder) if checkpoint.folder else _from_hub(checkpoint, reference, folders, hub)
    if wanted == "tokenizer":
        return replace(checkpoint, tokenizer=read_tokenizer(checkpoint.files, read, checkpoint.label))
    return replace(checkpoint, chat_template=read_chat_template(checkpoint.files, read, checkpoint.label))


def _from_folder(folder: Path) -> Read:
    return lambda name: _bytes(folder / name)


def _from_hub(checkpoint: Checkpoint, reference: ModelReference, folders: Sequence[Path], hub: Hub) -> Read:
    def read(name: str) -> bytes:
        repo_id = locate(replace(reference, adapters=()), folders).repo_id
        if repo_id is None or checkpoint.revision is None:
            raise CheckpointError(f"{checkpoint.label}: {name} is neither in a folder nor on the hub")
        return _bytes(small_file(repo_id, checkpoint.revision, name, hub=hub))

    return read


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
