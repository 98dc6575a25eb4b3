"""Whether a reference names a folder (or a file of weights) of this machine or a model on the hub.

In this order:

1. text that can only be a path (``/x``, ``./x``, ``../x``, ``~/x``, ``a/b/c``, anything that is no hub id) is one;
2. a folder of that name, or a file of weights, looked for in the given folders one after the other, wins over the hub;
3. ``org/name`` or ``name`` is a hub id.

A revision is the hub's: text with one is a hub id even if a folder has the same name, for a folder cannot say which
commit it holds, and the wrong one would be merged without a word. With a path, a revision is an error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mergeflow.errors import CheckpointError
from mergeflow.models.checkpoint import is_bare_file, missing_folder, nearest_folder
from mergeflow.recipe.records import ModelReference

# The hub's rule: at most 96 characters of letters, digits, "-", "_" and ".", no "--" or "..", no "-" or "." at an end.
_PART = r"(?![-.])(?!.*(?:--|\.\.))[\w.-]{1,96}(?<![-.])"
_HUB_ID = re.compile(rf"(?:{_PART}/)?{_PART}", re.ASCII)
_PATH_STARTS = ("/", "./", "../", "~")


@dataclass(frozen=True, slots=True)
class Located:
    """Where a model is: exactly one of `folder` (its folder, or its only file) and `repo_id` is set.

    `hint` is what to add to a message when the hub does not know the model: the folder that may have been meant.
    """

    folder: Path | None = None
    repo_id: str | None = None
    revision: str | None = None
    hint: str = ""


def locate(reference: ModelReference, folders: Sequence[Path]) -> Located:
    """Decide what a reference names; looks at folders, never at the network.

    Args:
        folders: where relative paths start, most important first.

    Raises:
        CheckpointError: a path to no folder, or a path with a revision.
    """
    text = reference.path
    places = _places(text, folders)
    found = next((place for place in places if place.exists()), None)
    if not _can_be_hub_id(text):
        if found is None:
            raise missing_folder(places[0], text)
        if reference.revision:
            raise CheckpointError(f"{reference}: a folder has no revisions; leave out '@{reference.revision}'")
        return Located(folder=found)
    if found is not None and _is_model(found) and not reference.revision:
        return Located(folder=found)
    return Located(repo_id=text, revision=reference.revision, hint=_hint(text, places, found))


def _places(text: str, folders: Sequence[Path]) -> list[Path]:
    """The paths `text` may stand for."""
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:  # ~somebody who is not a user here
        raise CheckpointError(f"{text}: {error}") from error
    return [path] if path.is_absolute() else [folder / path for folder in folders or (Path(),)]


def _is_model(path: Path) -> bool:
    return path.is_dir() or is_bare_file(path)


def _can_be_hub_id(text: str) -> bool:
    return not text.startswith(_PATH_STARTS) and text not in (".", "..") and _HUB_ID.fullmatch(text) is not None


def _hint(text: str, places: Sequence[Path], found: Path | None) -> str:
    if found is not None and _is_model(found):
        return f"the {'folder' if found.is_dir() else 'file'} {found} is used when the revision is left out"
    if found is not None:
        return f"{found} is a file, but not one of weights"
    near = next((near for place in places if (near := nearest_folder(place)) is not None), None)
    return f"there is no folder {text!r} either" + (f"; did you mean {str(near)!r}?" if near else "")
