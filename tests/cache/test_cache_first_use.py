"""The first moments of a cache folder, when several threads and processes find nothing and all want to write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cache_values import key

from mergeflow.cache.store import Cache
from mergeflow.errors import CacheError


def test_others_may_publish_while_the_folder_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between any two steps of making the folder another writer may make it and publish: neither fails.

    Whoever is second finds .tmp and works in it at once, so by then the tag must vouch for what it publishes.
    """
    make, listed = os.makedirs, os.listdir
    numbers = iter(range(100))

    def publish() -> None:
        with monkeypatch.context() as undone:
            undone.setattr(os, "makedirs", make)
            undone.setattr(os, "listdir", listed)
            Cache(tmp_path).write_record(key(next(numbers)), {}, {})

    def makedirs(*arguments: object, **options: object) -> None:
        make(*arguments, **options)  # type: ignore[arg-type]
        if os.path.isdir(tmp_path / "v1" / ".tmp"):
            publish()

    def listdir(path: str) -> list[str]:
        publish()
        found = listed(path)
        publish()
        return found

    monkeypatch.setattr(os, "makedirs", makedirs)
    monkeypatch.setattr(os, "listdir", listdir)
    Cache(tmp_path).write_record(key(1000), {"mine": 1}, {})
    assert Cache(tmp_path).read_record(key(1000)) == {"mine": 1}


def test_there_is_a_tag_before_anybody_can_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When .tmp appears, the tag is there: a writer that found only .tmp would publish into a folder nobody owns."""
    make = os.makedirs
    seen: list[bool] = []

    def makedirs(path: str, **options: bool) -> None:
        make(path, **options)
        if os.path.isdir(tmp_path / "v1" / ".tmp"):
            seen.append((tmp_path / "v1" / "CACHEDIR.TAG").exists())

    monkeypatch.setattr(os, "makedirs", makedirs)
    Cache(tmp_path).write_record(key(1), {}, {})
    assert seen
    assert all(seen)


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """A folder that holds files and no tag is not written to; one that holds only a tag's draft is."""
    (tmp_path / "theirs" / "v1").mkdir(parents=True)
    (tmp_path / "theirs" / "v1" / "notes.txt").write_text("mine")
    with pytest.raises(CacheError, match="is not a mergeflow cache"):
        Cache(tmp_path / "theirs").write_record(key(1), {}, {})
    assert [path.name for path in (tmp_path / "theirs" / "v1").iterdir()] == ["notes.txt"]

    (tmp_path / "ours" / "v1").mkdir(parents=True)
    (tmp_path / "ours" / "v1" / ".tag-0123").write_text("")
    Cache(tmp_path / "ours").write_record(key(1), {}, {})
    assert set(Cache(tmp_path / "ours").lookup([key(1)])) == {key(1)}
