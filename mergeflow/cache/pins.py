"""Pins: what the size limit and `gc` leave alone until somebody says otherwise.

    <root>/v1/.pins/<name>.json     {"mergeflow": "pin/1", "keys": [...], "of": "recipe.yaml, step skills"}

A pin names keys, whether they are in the cache now or will be. Names and keys are checked before they name anything. A
pin that cannot be read may name any key, so nothing is removed while it is there; it is listed as damaged, and
`unpin` removes it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Collection
from dataclasses import dataclass

from mergeflow.cache.folders import Folders, checked_key
from mergeflow.errors import CacheError, CheckpointError
from mergeflow.models.strict_json import parse_object

MOST_BYTES = 1 << 27

_FORMAT = "pin/1"
_SUFFIX = ".json"
# Shorter than a key, so that `unpin` tells the two apart.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class Pin:
    """Keys that stay. `keys` is None when the file is damaged; `of` says what they are, for people."""

    name: str
    keys: frozenset[str] | None
    of: str = ""


def is_pin_name(name: str) -> bool:
    """Whether `name` can be the name of a pin: 1 to 63 letters, digits, dots, dashes and underscores."""
    return _NAME.fullmatch(name) is not None


def pin_name(text: str) -> str:
    """A name for a pin made of any text, such as a recipe's file name."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip("._-")[:63]
    return name if is_pin_name(name) else "pin"


def names_of_pins(folders: Folders) -> frozenset[str]:
    """The names of all pins, damaged or not."""
    try:
        found = os.listdir(folders.pins)
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    names = (name.removesuffix(_SUFFIX) for name in found if name.endswith(_SUFFIX))
    return frozenset(filter(is_pin_name, names))


def read_pins(folders: Folders) -> list[Pin]:
    """Every pin, by name."""
    found = (read_pin(folders, name) for name in sorted(names_of_pins(folders)))
    return [pin for pin in found if pin is not None]


def read_pin(folders: Folders, name: str) -> Pin | None:
    """The pin `name`; None when there is none. CacheError when no pin can have that name."""
    path = _path(folders, name)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(handle, "rb") as file:
            text = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError:
        return Pin(name, None)
    try:
        return _decoded(name, text)
    except (CheckpointError, ValueError, TypeError, KeyError):
        return Pin(name, None)


def write_pin(folders: Folders, pin: Pin) -> None:
    """Pins keys, in place of what the pin of that name held.

    Raises:
        CacheError: no pin can have that name, or the cache folder cannot be used.
        OSError: the disk is full or failed; the pin is as it was.
    """
    keys = sorted(map(checked_key, pin.keys or ()))
    text = json.dumps({"mergeflow": _FORMAT, "of": pin.of, "keys": keys}, indent=0)
    folders.place_file(folders.pins, os.path.basename(_path(folders, pin.name)), text.encode("ascii"))


def remove_pin(folders: Folders, name: str) -> bool:
    """Removes the pin `name`, damaged or not; False when there is none. The entries stay."""
    path = _path(folders, name)
    if not os.path.lexists(path):
        return False
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    return True


def unpin_keys(folders: Folders, keys: Collection[str]) -> list[str]:
    """Takes keys out of every pin that has them, and returns the names of those pins. An empty pin goes."""
    changed = []
    for pin in read_pins(folders):
        if pin.keys is None or pin.keys.isdisjoint(keys):
            continue
        changed.append(pin.name)
        left = pin.keys.difference(keys)
        if left:
            write_pin(folders, Pin(pin.name, left, pin.of))
        else:
            remove_pin(folders, pin.name)
    return changed


def _path(folders: Folders, name: str) -> str:
    if not is_pin_name(name):
        rule = "1 to 63 letters, digits, dots, dashes and underscores, a letter or digit first"
        raise CacheError(f"{name!r} cannot name a pin: {rule}")
    return f"{folders.pins}/{name}{_SUFFIX}"


def _decoded(name: str, text: bytes) -> Pin:
    if len(text) > MOST_BYTES:
        raise ValueError("too large to be a pin")
    found = parse_object(text, name, unique=True)
    keys = found["keys"]
    if found["mergeflow"] != _FORMAT or not isinstance(keys, list):
        raise ValueError("not a pin of a format this version knows")
    return Pin(name, frozenset(checked_key(str(key)) for key in keys), str(found["of"]))
