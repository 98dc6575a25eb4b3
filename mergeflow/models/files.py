"""Which files of a checkpoint's folder travel with the merged model, and which stay behind.

A model is more than weights: tokenizer, chat template, generation and processor settings, `modules.json` and the
numbered folders of a sentence-transformers model. All of that is carried. What stays behind is

- weights in any format, their indexes, and what trainers leave beside them (optimizer and random states);
- a subfolder that holds weights of its own: another model, a training checkpoint, an export to ONNX;
- hidden files, our own lock file, and whatever lies deeper than two folders;
- a link that leads out of the folder. What is carried may be published, and a link in a downloaded repository could
  name any file of the reader's. (The hub's own cache is made of links, into a place of its own; those are fine.)
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mergeflow.models.names import in_natural_order

LOCK_NAME = "mergeflow.lock.json"
MAX_FOLDERS = 2
_WEIGHTS = re.compile(
    r"""\.(safetensors|bin|pt|pth|ckpt|gguf|ggml|h5|hdf5|msgpack|onnx|onnx_data|tflite|ot|pkl|pickle|npz|distcp)$
      | \.(safetensors|bin|pt|h5|msgpack)(\.[\w-]+)?\.index(\.[\w-]+)?\.json$
      | \.ckpt(-\d+)?\.(index|meta|data-\d+-of-\d+)$
      | (^|/)saved_model\.pb$""",
    re.VERBOSE | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class FolderFiles:
    """The files of a checkpoint's folder that are not its weights, relative to it, in natural order."""

    carried: tuple[str, ...]
    left_out: tuple[str, ...]


def is_weights(path: str) -> bool:
    """Whether a file's name says that it holds weights (or is their index, or a trainer's state)."""
    return _WEIGHTS.search(path) is not None


def choose(paths: Iterable[str]) -> FolderFiles:
    """Divide a folder's files (relative, with ``/``) into what is carried and what is left out; weights are neither.

    Weights of the folder itself are not listed: they are what is merged. Weights in subfolders are left out.
    """
    visible = [path for path in paths if not any(part.startswith(".") for part in PurePosixPath(path).parts)]
    other_models = {_folder(path) for path in visible if is_weights(path)} - {""}
    carried, left_out = [], []
    for path in visible:
        if _is_inside(path, other_models) or path.count("/") > MAX_FOLDERS:
            left_out.append(path)
        elif not is_weights(path) and path != LOCK_NAME:
            carried.append(path)
    return FolderFiles(tuple(in_natural_order(carried)), tuple(in_natural_order(left_out)))


def folder_files(folder: Path) -> FolderFiles:
    """`choose` for a folder on this machine. A link that leads out of it is left out."""
    found = list(_walk(folder, "", MAX_FOLDERS))
    places = _own_places(folder)
    strangers = {path for path in found if not _stays_inside(folder / path, places)}
    chosen = choose(path for path in found if path not in strangers)
    return FolderFiles(chosen.carried, tuple(in_natural_order([*chosen.left_out, *strangers])))


def _folder(path: str) -> str:
    return str(PurePosixPath(path).parent) if "/" in path else ""


def _is_inside(path: str, folders: set[str]) -> bool:
    return any(str(parent) in folders for parent in PurePosixPath(path).parents)


def _walk(folder: Path, prefix: str, depth: int) -> Iterator[str]:
    """Files of a folder and of `depth` levels below it, hidden ones excepted."""
    with os.scandir(folder / prefix) as entries:
        visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in visible:
        path = f"{prefix}{entry.name}"
        # A linked folder is not entered: it could lead anywhere, also back up.
        if entry.is_dir(follow_symlinks=False):
            if depth > 0:
                yield from _walk(folder, f"{path}/", depth - 1)
        elif entry.is_file():
            yield path


def _own_places(folder: Path) -> Sequence[str]:
    """Where links may lead: the folder, and for a snapshot of the hub's cache also the two folders of blobs."""
    real = Path(os.path.realpath(folder))
    places = [real]
    if real.parent.name == "snapshots":
        repository = real.parent.parent
        places += [repository / "blobs", repository.parent / "blobs"]
    return [str(place) for place in places]


def _stays_inside(path: Path, places: Sequence[str]) -> bool:
    real = os.path.realpath(path)
    return any(real.startswith(place + os.sep) for place in places)
