"""Pins: small files that keep entries, never believed more than their names and keys allow."""

from __future__ import annotations

from pathlib import Path

import pytest
from cache_values import key

from mergeflow.cache.pins import Pin, is_pin_name, pin_name, read_pin, read_pins, remove_pin, unpin_keys, write_pin
from mergeflow.cache.protection import Protection
from mergeflow.cache.store import Cache
from mergeflow.errors import CacheError

KEYS = frozenset({key(1), key(2)})


def test_a_pin_comes_back_as_it_was_written(tmp_path: Path) -> None:
    """Name, keys and what it is of; in place of an earlier one of that name; gone after it was removed."""
    folders = Cache(tmp_path).folders
    assert read_pins(folders) == []
    write_pin(folders, Pin("one", KEYS, "recipe.yaml, step é"))
    write_pin(folders, Pin("two", frozenset({key(3)})))
    assert read_pins(folders) == [Pin("one", KEYS, "recipe.yaml, step é"), Pin("two", frozenset({key(3)}))]
    write_pin(folders, Pin("one", frozenset({key(4)})))
    assert read_pin(folders, "one") == Pin("one", frozenset({key(4)}))
    assert remove_pin(folders, "one")
    assert not remove_pin(folders, "one")
    assert [pin.name for pin in read_pins(folders)] == ["two"]


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "-x", "a" * 64, "é", "a\n", ".hidden", key(1)])
def test_only_names_name_pins(tmp_path: Path, name: str) -> None:
    """What is not a short plain name names no file: neither to write, nor to read, nor to remove."""
    folders = Cache(tmp_path / "cache").folders
    for use in (lambda: write_pin(folders, Pin(name, KEYS)), lambda: read_pin(folders, name)):
        with pytest.raises(CacheError, match="cannot name a pin"):
            use()
    with pytest.raises(CacheError, match="cannot name a pin"):
        remove_pin(folders, name)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("text", ["recipe", "../../x y", "", "é", "a" * 200, "-a", key(1)])
def test_any_text_makes_a_name(text: str) -> None:
    """A pin is named after a recipe's file, whatever that is called."""
    assert is_pin_name(pin_name(text))


def test_only_keys_are_pinned(tmp_path: Path) -> None:
    """What is not a key is refused before anything is written."""
    cache = Cache(tmp_path)
    with pytest.raises(ValueError, match="64 lowercase"):
        write_pin(cache.folders, Pin("one", frozenset({"../x"})))
    assert read_pins(cache.folders) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"mergeflow": "pin/2", "of": "", "keys": []}',
        b'{"mergeflow": "pin/1", "of": "", "keys": ["../../x"]}',
        b'{"mergeflow": "pin/1", "of": "", "keys": {"a": 1}}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_a_pin_that_cannot_be_read_protects_everything(tmp_path: Path, content: bytes) -> None:
    """It is listed as damaged, nothing may go while it is there, and it can be removed."""
    folders = Cache(tmp_path).folders
    write_pin(folders, Pin("one", KEYS))
    Path(folders.pins, "one.json").write_bytes(content)
    assert read_pins(folders) == [Pin("one", None)]
    assert Protection(folders).holds(key(77))
    assert Protection(folders).doubts == [f"{folders.pins}/one.json"]
    assert remove_pin(folders, "one")
    assert not Protection(folders).holds(key(77))


def test_a_pin_that_is_changed_counts_at_once(tmp_path: Path) -> None:
    """A pin that names other keys than when the list was made is read again."""
    folders = Cache(tmp_path).folders
    write_pin(folders, Pin("one", frozenset({key(1)})))
    protection = Protection(folders)
    write_pin(folders, Pin("one", frozenset({key(2)})))
    assert (protection.holds(key(1)), protection.holds(key(2))) == (False, True)


def test_keys_are_taken_out_of_every_pin(tmp_path: Path) -> None:
    """A pin that has none left goes; others keep the rest; names of the changed ones come back."""
    folders = Cache(tmp_path).folders
    write_pin(folders, Pin("both", KEYS, "x"))
    write_pin(folders, Pin("one", frozenset({key(1)})))
    write_pin(folders, Pin("other", frozenset({key(3)})))
    assert unpin_keys(folders, [key(1)]) == ["both", "one"]
    assert read_pins(folders) == [Pin("both", frozenset({key(2)}), "x"), Pin("other", frozenset({key(3)}))]
