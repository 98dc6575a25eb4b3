"""Where the paths in an output's recipe start: remembered on this machine, because the lock names no place.

One small JSON file for each output folder in the state folder. It only helps `verify` to find the inputs again, so a
damaged or missing one is the same as none.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import blake3

from mergeflow.recipe.records import Recipe

MAX_BYTES = 100_000


def remember_output(state: Path, out: Path, recipe: Recipe) -> None:
    """Note the folders in which the paths of the recipe of `out` start. A state folder that refuses is no failure."""
    folders = [str(folder) for folder in (recipe.folder, recipe.fallback_folder) if folder is not None]
    path = _file(state, out)
    entry = {"output": os.path.realpath(out), "folders": [os.path.abspath(folder) for folder in folders]}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(entry), encoding="utf-8")
        draft.replace(path)
    except (OSError, UnicodeEncodeError):
        return


def recall_folders(state: Path, out: Path) -> tuple[Path, ...]:
    """Where the paths of the recipe of `out` start, most important first; empty when nobody remembers."""
    try:
        with _file(state, out).open("rb") as stream:
            entry = json.loads(stream.read(MAX_BYTES))
        folders = entry["folders"] if entry["output"] == os.path.realpath(out) else []
        return tuple(Path(folder) for folder in folders if isinstance(folder, str))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return ()


def _file(state: Path, out: Path) -> Path:
    name = blake3.blake3(os.fsencode(os.path.realpath(out))).hexdigest(16)
    return state / "outputs" / f"{name}.json"
