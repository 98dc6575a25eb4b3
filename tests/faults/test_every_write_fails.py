"""Every change that a run makes to the file system fails once, one after the other.

Outputs, staging folders, cache entries, digests, history: the shim below them all counts changes, so
none is left out because nobody thought of it. After each failure: one clear error or a run that went on without what
failed; under the output's name the earlier output or the new one, whole; and the next run gives the right bytes and
leaves nothing behind.
"""

from __future__ import annotations

import errno
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from failing_system import changes, chosen, disturbed, failing
from three_steps import let_settle
from tiny_checkpoints import raw_bytes, write_model

import mergeflow
from mergeflow.cache.open import open_cache
from mergeflow.errors import MergeflowError
from mergeflow.workflow.options import Options

RECIPE = """\
mergeflow: 1
models: {base: ./base, a: ./a}
steps:
  delta: {task_vector: {model: a, base: base}}
  mixed:
    merge_method: ties
    cache: always
    base_model: base
    models: [{model: delta, parameters: {weight: 0.5, density: DENSITY}}]
  final:
    merge_method: linear
    models: [{model: base}, {model: mixed}]
    parameters: {weight: 0.5}
outputs: {final: {path: ./out, max_shard_size: 1KB}}
"""
# Where a run writes.
PLACES = (".mergeflow/lock", ".partial", "journal", "next/", "/cache/v1", "/state/runs")
FAULTS = (errno.ENOSPC, errno.EIO, errno.EACCES)


@dataclass(frozen=True)
class Bench:
    """Two models and a recipe, what was made before, and what the recipe makes."""

    folder: Path
    earlier: dict[str, bytes]
    wanted: dict[str, bytes]

    def prepare(self, place: Path, *, has_earlier: bool) -> None:
        """An empty place, or one with the earlier output, its cache and what it remembered."""
        place.mkdir()
        if has_earlier:
            for name in ("out", "cache", "state"):
                shutil.copytree(self.folder / "earlier" / name, place / name, copy_function=shutil.copy2)

    def run(self, place: Path, recipe: str = "recipe.yaml", memory: int | None = 1) -> mergeflow.RunReport:
        how = Options(cache=place / "cache", state=place / "state", workers=1, device="cpu", memory=memory)
        return mergeflow.run(self.folder / recipe, place / "out", options=how)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    generator = torch.Generator().manual_seed(1)
    for name in ("base", "a"):
        # The first is larger than a block.
        shapes = {"model.one.weight": (270, 256), "model.two.weight": (16, 16), "model.norm.weight": (16,)}
        write_model(folder / name, {it: torch.randn(*shape, generator=generator) for it, shape in shapes.items()})
    (folder / "recipe.yaml").write_text(RECIPE.replace("DENSITY", "[{filter: one, value: 0.5}, {value: 0.3}]"))
    (folder / "earlier.yaml").write_text(RECIPE.replace("DENSITY", "[{filter: one, value: 0.7}, {value: 0.3}]"))
    let_settle(folder)
    made = Bench(folder, {}, {})
    for name, recipe in (("earlier", "earlier.yaml"), ("wanted", "recipe.yaml")):
        (folder / name).mkdir()
        made.run(folder / name, recipe)
        (folder / name / "out" / "notes.txt").write_text("mine")
    shutil.copy(folder / "earlier" / "out" / "notes.txt", folder)
    return Bench(folder, raw_bytes(folder / "earlier" / "out"), raw_bytes(folder / "wanted" / "out"))


def without_notes(files: dict[str, bytes]) -> dict[str, bytes]:
    return {path: content for path, content in files.items() if path != "notes.txt"}


@pytest.mark.parametrize("stays", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("has_earlier", [False, True], ids=["nothing there", "earlier output"])
def test_any_change_fails(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_earlier: bool, stays: bool
) -> None:
    """Whichever change fails: an error of ours or success, the output whole, and a rerun that makes it right."""
    if has_earlier:  # torch's way to the files, and the native library's
        monkeypatch.setattr("mergeflow.execute.engine.is_native", lambda program: False)
    bench.prepare(tmp_path / "counted", has_earlier=has_earlier)
    seen = changes(tmp_path / "counted", lambda: bench.run(tmp_path / "counted"))
    places = PLACES if has_earlier else (*PLACES, "/state/digests")
    assert not [place for place in places if not any(place in change for change in seen)]
    before = bench.earlier if has_earlier else {}
    wanted = bench.wanted if has_earlier else without_notes(bench.wanted)
    for number in chosen(seen, 12 if stays else 6):
        place = tmp_path / str(number)
        bench.prepare(place, has_earlier=has_earlier)
        fault = FAULTS[number % len(FAULTS)]
        with failing(place, number, fault, stays=stays) as system:
            try:
                bench.run(place)
                said = ""
            except MergeflowError as error:
                said = str(error)
        where = f"change {number} ({system.failed}) said {said!r}"
        assert system.failed, where
        assert "\n" not in said, where
        found = raw_bytes(place / "out") if (place / "out").exists() else {}
        assert found in ((before, wanted) if said else (wanted,)), where

        bench.run(place)
        assert raw_bytes(place / "out") == wanted, where
        assert {path.name for path in place.iterdir()} <= {"out", "cache", "state"}, where
        if number % 4 == 1:  # what the failed run has left in the cache is sound
            shutil.rmtree(place / "out")
            report = bench.run(place)
            assert without_notes(raw_bytes(place / "out")) == without_notes(bench.wanted), where
            assert report.tensors.cached + report.tensors.computed == report.tensors.total
        shutil.rmtree(place)


def remove_all(cache: Path) -> None:
    shutil.rmtree(cache, ignore_errors=True)


def remove_the_tag(cache: Path) -> None:
    (cache / "v1" / "CACHEDIR.TAG").unlink(missing_ok=True)
    shutil.rmtree(cache / "v1" / ".tmp", ignore_errors=True)


def remove_half(cache: Path) -> None:
    """What `rm -rf` has done when it is half way through: tag, documents and some folders are gone."""
    for path in sorted(cache.glob("v1/*")) + sorted(cache.glob("v1/??/*/*")):
        if path.is_dir() and path.name < "7":
            remove_all(path)
        elif path.is_file():
            path.unlink()


REMOVALS = (remove_all, remove_the_tag, remove_half)


@pytest.mark.parametrize("has_earlier", [False, True], ids=["filling", "reading"])
def test_the_cache_is_removed_before_any_change(bench: Bench, tmp_path: Path, has_earlier: bool) -> None:
    """`rm -rf` of the cache, whole or half done, before any write to it: the run succeeds, and the next one too."""
    place = tmp_path / "counted"
    bench.prepare(place, has_earlier=has_earlier)
    seen = changes(place / "cache", lambda: bench.run(place))
    for number in chosen(seen, 5):
        place = tmp_path / str(number)
        bench.prepare(place, has_earlier=has_earlier)
        remove = REMOVALS[number % len(REMOVALS)]
        with disturbed(place / "cache", number, partial(remove, place / "cache")) as system:
            bench.run(place)
        assert system.failed, number
        assert without_notes(raw_bytes(place / "out")) == without_notes(bench.wanted), (number, system.failed)
        shutil.rmtree(place / "out")
        bench.run(place)
        assert without_notes(raw_bytes(place / "out")) == without_notes(bench.wanted), (number, system.failed)
        assert open_cache(place / "cache").folders.is_ours()
        shutil.rmtree(place)
