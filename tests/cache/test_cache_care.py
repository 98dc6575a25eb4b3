"""Counting and emptying a cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cache_values import files, key, put_tensor

from mergeflow.cache.care import Usage, clear, entries, usage
from mergeflow.cache.store import Cache
from mergeflow.dtypes import FLOAT32
from mergeflow.errors import CacheError, CorruptEntry


def filled(folder: Path) -> Cache:
    cache = Cache(folder)
    cache.write_record(key(3), {"x": 1}, {"op": "gram", "step": "final"})
    cache.write_record(key(1), {"x": 2}, {"op": "kth_magnitude", "step": "skills"})
    put_tensor(cache, key(2), FLOAT32, (5, 5))
    return cache


def test_entries_come_by_key_with_what_is_known(tmp_path: Path) -> None:
    """Each entry is listed once, by rising key, with kind, bytes, op, step and times."""
    found = list(entries(filled(tmp_path)))
    assert [(info.key, info.kind, info.about["op"]) for info in found] == [
        (key(1), "record", "kth_magnitude"),
        (key(2), "tensor", "trim"),
        (key(3), "record", "gram"),
    ]
    assert all(0 < info.created <= info.last_used for info in found)
    assert found[1].nbytes > 100


def test_usage_counts_what_the_files_take(tmp_path: Path) -> None:
    """Counts and bytes per kind are those of the files; a damaged entry is counted apart."""
    cache = filled(tmp_path)
    sizes = {number: sum(path.stat().st_size for path in files(cache, key(number))) for number in (1, 2, 3)}
    os.truncate(files(cache, key(3))[0], 3)
    used = usage(cache)
    assert used == Usage(records=1, record_bytes=sizes[1], tensors=1, tensor_bytes=sizes[2], damaged=1)
    assert (used.entries, used.nbytes) == (2, sizes[1] + sizes[2])


def test_an_absent_or_empty_cache_is_empty(tmp_path: Path) -> None:
    """Listing, counting and clearing a cache that was never written gives nothing and makes nothing."""
    for root in (tmp_path / "absent", tmp_path):
        cache = Cache(root)
        assert list(entries(cache)) == []
        assert usage(cache) == clear(cache) == Usage()
    assert list(tmp_path.iterdir()) == []


def test_clearing_removes_every_entry(tmp_path: Path) -> None:
    """After `clear` every key is a miss, damaged entries are gone too, and the cache can be written again."""
    cache = filled(tmp_path)
    os.truncate(files(cache, key(3))[0], 3)
    before = usage(cache)
    assert clear(cache) == before
    assert usage(cache) == Usage()
    cache.write_record(key(1), {"x": 1}, {})
    assert usage(cache).records == 1


def test_clearing_removes_abandoned_work(tmp_path: Path) -> None:
    """What a writer on another machine left more than a day ago goes with `clear`, what is recent stays."""
    cache = filled(tmp_path)
    works = Path(cache.folders.works)
    for name, modified in (("feedfeedfeedfeed-1.1-00", 1_000_000_000.0), ("feedfeedfeedfeed-2.1-00", None)):
        (works / name).mkdir()
        if modified:
            os.utime(works / name, (modified, modified))
    clear(cache)
    assert [path.name for path in works.iterdir()] == ["feedfeedfeedfeed-2.1-00"]


def test_clearing_touches_only_entries(tmp_path: Path) -> None:
    """Files beside the cache, unknown names inside it, and what a link points to all stay."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "thesis.tex").write_text("mine")
    root = tmp_path / "cache"
    cache = filled(root)
    (root / ".gitignore").write_text("*")
    (root / "v1" / "notes").write_text("mine")
    (root / "v1" / "ff").symlink_to(tmp_path / "outside")
    (Path(cache.folders.entry(key(1))) / "link").symlink_to(tmp_path / "outside")
    clear(cache)
    assert (tmp_path / "outside" / "thesis.tex").read_text() == "mine"
    assert (root / ".gitignore").exists()
    assert (root / "v1" / "notes").exists()
    assert not (root / "v1" / "ff").is_symlink()
    assert usage(cache) == Usage()


def test_a_folder_without_our_tag_is_refused(tmp_path: Path) -> None:
    """`clear` empties nothing that does not carry the tag of a mergeflow cache."""
    cache = filled(tmp_path)
    Path(cache.folders.tag).unlink()
    with pytest.raises(CacheError, match="is not a mergeflow cache"):
        clear(cache)
    Path(cache.folders.tag).write_text("Signature: 8a477f597d28d172789f06886806bc55\n# another program's cache")
    with pytest.raises(CacheError, match="nothing was removed"):
        clear(cache)
    assert usage(cache).entries == 3


def test_a_link_in_place_of_the_cache_is_refused(tmp_path: Path) -> None:
    """`clear` does not go through a link to another cache."""
    cache = filled(tmp_path / "real")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "v1").symlink_to(tmp_path / "real" / "v1")
    with pytest.raises(CacheError, match="is not a mergeflow cache"):
        clear(Cache(tmp_path / "linked"))
    assert usage(cache).entries == 3


def test_damage_met_while_listing_is_told(tmp_path: Path) -> None:
    """A damaged entry does not stop the listing: the caller is told of it."""
    cache = filled(tmp_path)
    os.truncate(files(cache, key(2))[0], 1)
    told: list[CorruptEntry] = []
    assert [info.key for info in entries(cache, told.append)] == [key(1), key(3)]
    assert [error.key for error in told] == [key(2)]
