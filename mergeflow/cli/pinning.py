"""What `cache pin` and `cache unpin` do and say."""

from __future__ import annotations

import json
from pathlib import Path

from mergeflow.cache.folders import is_key
from mergeflow.cache.pins import Pin, is_pin_name, pin_name, read_pin, read_pins, remove_pin, unpin_keys, write_pin
from mergeflow.cli.cache_selection import Selection
from mergeflow.cli.console import plain, print_text
from mergeflow.errors import CacheError, counted


def pin_recipes(selection: Selection, name: str | None) -> None:
    """Pin what recipes, or some of their steps, are made of."""
    assert selection.keys is not None  # there are recipes
    files = [Path(recipe.file) for recipe in selection.recipes]
    of = ", ".join([*(str(file.absolute()) for file in files), *(f"step {step}" for step in selection.steps)])
    made = pin_name("-".join([*(file.stem for file in files), *selection.steps]))
    keys = selection.keys.all
    if not keys:
        raise CacheError(f"nothing to pin: no value of {of} has a key yet; run the recipe first")
    _pin(selection, Pin(name or made, keys, of))


def pin_keys(selection: Selection, keys: list[str], name: str | None) -> None:
    """Pin single entries."""
    for key in keys:
        if not is_key(key):
            raise CacheError(f"{key[:80]!r} is not a key: 64 lowercase hexadecimal digits, as `cache ls` shows them")
    _pin(selection, Pin(name or f"key-{keys[0][:12]}", frozenset(keys), counted(len(set(keys)), "key")))


def list_pins(selection: Selection, *, as_json: bool) -> None:
    """A line per pin; as JSON, an object per line."""
    for pin in read_pins(selection.cache.folders):
        if as_json:
            count = None if pin.keys is None else len(pin.keys)
            print_text(json.dumps({"name": pin.name, "keys": count, "of": pin.of, "damaged": pin.keys is None}))
        elif pin.keys is None:
            print_text(f"{pin.name}  damaged: nothing is removed while it is there; mergeflow cache unpin {pin.name}")
        else:
            print_text(plain(f"{pin.name}  {counted(len(pin.keys), 'key')}  {pin.of}"))


def unpin(selection: Selection, names: list[str]) -> None:
    """Take pins away, or keys out of all pins. Nothing is changed when one of them is not there."""
    folders = selection.cache.folders
    pins = {pin.name: pin for pin in read_pins(folders)}
    keys = [name for name in names if is_key(name)]
    pinned = frozenset().union(*(pin.keys for pin in pins.values() if pin.keys is not None))
    missing = [name for name in names if name not in (pinned if is_key(name) else pins)]
    if missing:
        known = f"pins: {', '.join(pins)}" if pins else "there are none"
        raise CacheError(f"no pin {missing[0][:80]!r} ({known})")
    changed = unpin_keys(folders, keys)
    gone = [name for name in names if not is_key(name) and remove_pin(folders, name)]
    if gone:
        print_text(f"removed {counted(len(gone), 'pin')}: {', '.join(gone)}")
    if keys:
        print_text(f"took {counted(len(keys), 'key')} out of {', '.join(changed)}")


def _pin(selection: Selection, pin: Pin) -> None:
    folders = selection.cache.folders
    before = read_pin(folders, pin.name) if is_pin_name(pin.name) else None
    if before is not None and before.of != pin.of:
        what = before.of or "something that cannot be read"
        raise CacheError(f"the pin {pin.name} is there already, of {what}: name another (--name), or unpin it first")
    write_pin(folders, pin)
    there = len(selection.cache.lookup(pin.keys or ()))
    print_text(f"pinned {pin.name}: {counted(len(pin.keys or ()), 'key')}, of which {there} in the cache now")
