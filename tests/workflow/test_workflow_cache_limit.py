"""Runs and the size limit: no run fails for it, none loses what it needs, and afterwards it is kept."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from three_models import RECIPE, three_models

import mergeflow
from mergeflow.cache import store
from mergeflow.cache.index import survey
from mergeflow.cache.leases import names_of_leases
from mergeflow.cache.limit import evict
from mergeflow.cache.pins import Pin, write_pin
from mergeflow.cache.protection import Protection
from mergeflow.cache.store import Cache
from mergeflow.errors import CacheError
from mergeflow.execute.events import Event, PhaseStarted
from mergeflow.workflow import running
from mergeflow.workflow.options import Options, named_limit

ALWAYS = RECIPE.replace("  skills:\n", "  skills:\n    cache: always\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = three_models(tmp_path / "models")
    (made / "recipe.yaml").write_text(ALWAYS)
    return made


def run(folder: Path, listen: Callable[[Event], None] = lambda _: None, **wishes: object) -> mergeflow.RunReport:
    stated: dict[str, object] = {"cache": folder / "cache", "state": folder / "state", "workers": 1, "device": "cpu"}
    options = Options(**(stated | wishes))  # type: ignore[arg-type]
    return mergeflow.run(folder / "recipe.yaml", folder / "out", options=options, listen=listen)


def cache_of(folder: Path) -> Cache:
    return Cache(folder / "cache")


def size(folder: Path) -> int:
    return survey(cache_of(folder).folders, None).taken


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "out").glob("*.safetensors"))}


def test_after_a_run_the_cache_is_within_its_limit(folder: Path) -> None:
    """What did not fit went, with one warning that says how to raise the limit; the output is what it was."""
    run(folder)
    expected, full = weights(folder), size(folder)
    (folder / "recipe.yaml").write_text(ALWAYS.replace("0.5", "0.4"))
    run(folder)
    assert size(folder) > full
    (folder / "recipe.yaml").write_text(ALWAYS)
    report = run(folder, cache_limit=full // 2)
    assert size(folder) <= full // 2
    assert weights(folder) == expected
    warnings = [warning for warning in report.warnings if "did not fit into the cache's limit" in warning]
    assert len(warnings) == 1
    assert "--cache-limit or $MERGEFLOW_CACHE_LIMIT" in warnings[0]


def test_the_first_run_over_new_models_says_it_too(folder: Path) -> None:
    """Also where keys are known only when the inputs were hashed, which is while they are merged."""
    report = run(folder, cache_limit=20_000)
    assert size(folder) <= 20_000
    assert sum("did not fit into the cache's limit of 0.02 MB" in warning for warning in report.warnings) == 1


def test_what_other_recipes_left_goes_first(folder: Path) -> None:
    """A run takes the room of entries that nobody has used since, without a word; its own stay."""
    run(folder)
    old = {entry.key for entry in survey(cache_of(folder).folders, None).entries()}
    for key in old:
        os.utime(cache_of(folder).folders.entry(key), (1e9, 1e9))
    full = size(folder)
    (folder / "recipe.yaml").write_text(ALWAYS.replace("0.5", "0.4"))
    report = run(folder, cache_limit=full)
    assert size(folder) <= full
    assert report.warnings == ()
    again = run(folder, cache_limit=full)
    assert (again.tensors.kept, again.statistics["computed"]) == (again.tensors.total, 0)


def test_a_limit_of_nothing_is_a_run_without_a_cache(folder: Path) -> None:
    """--cache-limit 0: nothing stays, and the bytes are the same."""
    run(folder, cache=None)
    expected = weights(folder)
    (folder / "recipe.yaml").write_text(ALWAYS + "# another\n")
    for shard in (folder / "out").glob("*"):
        shard.unlink()
    (folder / "out").rmdir()
    run(folder, cache_limit=0)
    assert size(folder) == 0
    assert weights(folder) == expected


def test_pins_stay_whatever_the_limit(folder: Path) -> None:
    """A pinned entry of another recipe outlives a run that has no room."""
    run(folder)
    cache = cache_of(folder)
    pinned = frozenset(entry.key for entry in survey(cache.folders, None).entries()[:3])
    write_pin(cache.folders, Pin("mine", pinned))
    (folder / "recipe.yaml").write_text(ALWAYS.replace("0.5", "0.4"))
    run(folder, cache_limit=0)
    assert {entry.key for entry in survey(cache.folders, None).entries()} == pinned


def test_a_run_holds_a_lease_on_what_it_needs(folder: Path) -> None:
    """While it merges nothing of its recipe can be evicted; when it ends, by success or error, there is no lease."""
    run(folder)
    cache = cache_of(folder)
    before = {entry.key for entry in survey(cache.folders, None).entries()}
    seen: list[frozenset[str]] = []

    def others(event: Event) -> None:
        if isinstance(event, PhaseStarted) and event.name == "merge":
            seen.append(Protection(cache.folders).keys)
            assert evict(cache, 0).count == 0

    run(folder, others)
    assert len(seen) == 1
    assert before <= seen[0]
    assert names_of_leases(cache.folders) == frozenset()

    def failing(event: Event) -> None:
        if isinstance(event, PhaseStarted) and event.name == "merge":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folder, failing)
    assert names_of_leases(cache.folders) == frozenset()


def test_entries_taken_between_lookup_and_use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An eviction that saw no lease yet: what the lookup had found is gone, and is computed again."""
    run(folder)
    expected = weights(folder)
    look_up = running.look_up
    gone: list[int] = []

    def and_then_evicted(*arguments: object) -> object:
        known = look_up(*arguments)  # type: ignore[arg-type]
        for lease in names_of_leases(cache_of(folder).folders):
            Path(cache_of(folder).folders.leases, lease).unlink()
        if not gone:
            gone.append(evict(cache_of(folder), 0).count)
        return known

    monkeypatch.setattr(running, "look_up", and_then_evicted)
    for shard in (folder / "out").glob("*"):
        shard.unlink()
    run(folder)
    assert gone[0] > 0
    assert weights(folder) == expected


def test_a_full_disk_of_the_cache_fails_no_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC at whatever file of the cache: the output is made, with one warning, and what is there is whole."""
    run(folder, cache=None)
    expected = weights(folder)
    for allowed in (0, 3, 11):
        for shard in (folder / "out").glob("*"):
            shard.unlink()
        monkeypatch.setattr(store, "open", FullAfter(allowed), raising=False)
        report = run(folder, cache=folder / f"cache{allowed}")
        monkeypatch.undo()
        assert weights(folder) == expected
        assert sum("the cache's disk is full" in warning for warning in report.warnings) == 1
        found = survey(Cache(folder / f"cache{allowed}").folders, None).entries()
        assert all(entry.kind != "damaged" for entry in found)


class FullAfter:
    """`open` on a disk that has room for so many files."""

    def __init__(self, files: int) -> None:
        self._left = files

    def __call__(self, path: str, mode: str, buffering: int) -> object:
        self._left -= 1
        if self._left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return open(path, mode, buffering=buffering)


def test_the_limit_of_the_environment() -> None:
    """$MERGEFLOW_CACHE_LIMIT is a size; anything else is an error that names it; empty means none."""
    assert named_limit({"MERGEFLOW_CACHE_LIMIT": "5GB"}) == 5 * 10**9
    assert named_limit({"MERGEFLOW_CACHE_LIMIT": ""}) is None
    assert named_limit({}) is None
    with pytest.raises(CacheError, match=r"\$MERGEFLOW_CACHE_LIMIT: 'much' is not a size"):
        named_limit({"MERGEFLOW_CACHE_LIMIT": "much"})
