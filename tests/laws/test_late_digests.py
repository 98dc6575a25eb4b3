"""A first run over new models: tasks hash what they read, and nothing shows of it but the time it takes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from three_steps import CACHED, RECIPE, options, three_models, weights, write_recipe

import mergeflow
from mergeflow.cache.care import entries
from mergeflow.cache.store import Cache
from mergeflow.execute import input_digests
from mergeflow.output.lock import read_lock
from mergeflow.workflow import running
from mergeflow.workflow.report import RunReport

DARE = """\
mergeflow: 1
seed: 7
steps:
  skills:
    merge_method: dare_ties
    base_model: ./base
    models:
      - {model: ./math, parameters: {weight: 0.6, density: 0.5}}
      - {model: ./code, parameters: {weight: 0.4, density: [0.3, 0.6]}}
outputs:
  skills: {path: ./out, max_shard_size: 40KB, dtype: bfloat16}
"""
STACK = """\
mergeflow: 1
steps:
  tall:
    merge_method: passthrough
    slices:
      - {sources: [{model: ./base, layer_range: [0, 2]}]}
      - {sources: [{model: ./base, layer_range: [1, 3]}]}
outputs:
  tall: {path: ./out}
"""
TWO = RECIPE + "  skills: {path: ./other}\n"
RECIPES = {"ties, slerp": RECIPE, "a step in the cache": CACHED, "dare": DARE, "a stack": STACK, "two outputs": TWO}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Small models with every shape."""
    write_recipe(three_models(tmp_path, large=(40, 64)))
    return tmp_path


def first_run(folder: Path, text: str, name: str, **wishes: object) -> RunReport:
    """A run on a machine called `name`, where nothing has run before, into out and other below a folder of that name."""
    text = text.replace("./out", f"./{name}/out").replace("./other", f"./{name}/other")
    known = {"cache": folder / name / "cache", "state": folder / name / "state"}
    return mergeflow.run(write_recipe(folder, text), options=options(folder, **{**known, **wishes}))


def locked(folder: Path) -> object:
    """What the lock says, without what names the folders of the two machines."""
    lock = read_lock(folder)
    assert lock is not None
    return lock.models, lock.steps, lock.shards, lock.samples


def kept(folder: Path) -> set[str]:
    return {entry.key for entry in entries(Cache(folder))}


@pytest.mark.parametrize("text", RECIPES.values(), ids=list(RECIPES))
def test_the_same_as_hashing_first(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes, lock, keys, fates, counts and cache as a run that hashes its inputs before all else."""
    late = first_run(folder, text, "late")
    monkeypatch.setattr(running, "may_hash_later", lambda *_: False)
    early = first_run(folder, text, "early")
    assert "digest" in early.phases
    for name in ("out", "other") if "./other" in text else ("out",):
        assert weights(folder / "late" / name) == weights(folder / "early" / name)
        assert locked(folder / "late" / name) == locked(folder / "early" / name)
    assert late.keys == early.keys
    assert late.fates == early.fates
    assert (late.tensors, late.statistics) == (early.tensors, early.statistics)
    assert (late.bytes.read, late.bytes.written) == (early.bytes.read, early.bytes.written)
    assert kept(folder / "late" / "cache") == kept(folder / "early" / "cache")


@pytest.mark.parametrize("text", RECIPES.values(), ids=list(RECIPES))
def test_every_input_is_hashed_once(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever several programs read is hashed before them, everything else by the one that reads it."""
    hashed: Counter[str] = Counter()

    def counting(sources: Any, *rest: Any) -> Any:
        hashed.update(f"{source.segments[0].file.path}:{source.name}" for source in sources)
        return original(sources, *rest)

    original = input_digests.hash_batch
    monkeypatch.setattr(input_digests, "hash_batch", counting)
    first_run(folder, text, "late")
    assert hashed
    assert set(hashed.values()) == {1}


def test_what_the_cache_has_is_read_from_it(folder: Path) -> None:
    """Another machine with the same cache computes no statistic and no kept tensor, and says so."""
    first = first_run(folder, CACHED, "one")
    second = first_run(folder, CACHED, "two", cache=folder / "one" / "cache")
    assert second.statistics["computed"] == 0
    assert second.statistics["cached"] > 0
    assert second.bytes.cache_read > 0
    assert second.bytes.cache_written == 0
    assert second.keys == first.keys
    assert weights(folder / "two" / "out") == weights(folder / "one" / "out")


def test_the_second_run_knows_the_digests(folder: Path) -> None:
    """What the tasks found out is remembered: nothing is hashed, and nothing computed, again."""
    first_run(folder, RECIPE, "late")
    again = first_run(folder, RECIPE, "late")
    assert again.bytes.read == 0
    assert again.tensors.kept == again.tensors.total
