"""What runs and looks leave in the cache, and what they make of what they find there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from three_models import RECIPE, settle, three_models
from tiny_checkpoints import llama_tensors, write_model

import mergeflow
from mergeflow.cache.store import Cache
from mergeflow.errors import RunError
from mergeflow.execute.events import Event, Warned
from mergeflow.workflow.looking import step_tensors
from mergeflow.workflow.options import Options

NEVER = RECIPE.replace("  skills:\n", "  skills:\n    cache: never\n")
ALWAYS = RECIPE.replace("  skills:\n", "  skills:\n    cache: always\n")

# mid overflows where a and b are large; s reads it.
OVERFLOW = """\
mergeflow: 1
models: {a: ./a, b: ./b}
vars: {weight: 0.5}
steps:
  mid:
    merge_method: linear
    cache: always
    models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]
    parameters: {normalize: false}
  s:
    merge_method: linear
    models: [{model: mid, parameters: {weight: 1}}, {model: a, parameters: {weight: "${weight}"}}]
    parameters: {normalize: false}
outputs: {s: {path: ./out}}
"""

LARGE_TENSOR = "model.norm.weight"


def options(folder: Path, **wishes: object) -> Options:
    stated: dict[str, object] = {"cache": folder / "cache", "state": folder / "state", "workers": 1, "device": "cpu"}
    return Options(**(stated | wishes))  # type: ignore[arg-type]


def entries(folder: Path) -> list[Path]:
    return sorted((folder / "cache").rglob("zarr.json"))


def ops(folder: Path, text: str) -> dict[str, int]:
    """How many entries of each operation a first run of a recipe leaves in the cache."""
    (folder / "recipe.yaml").write_text(text)
    report = mergeflow.run(folder / "recipe.yaml", folder / "out", options=options(folder))
    found: dict[str, int] = {}
    keys = [path.parent.name for path in entries(folder)]
    for info in Cache(folder / "cache").lookup(keys).values():
        found[str(info.about["op"])] = found.get(str(info.about["op"]), 0) + 1
    assert (report.bytes.cache_written > 0) == bool(found)
    return found


def test_a_step_that_is_never_cached_leaves_nothing(tmp_path: Path) -> None:
    """Neither its thresholds nor its sums are written; another step's statistics are."""
    assert set(ops(three_models(tmp_path / "auto"), RECIPE)) == {"gram", "kth_magnitude"}
    assert set(ops(three_models(tmp_path / "never"), NEVER)) == {"gram"}


def test_looking_at_a_step_that_is_never_cached_leaves_nothing(tmp_path: Path) -> None:
    """`mergeflow.tensors` keeps to the policy too."""
    folder = three_models(tmp_path)
    (folder / "recipe.yaml").write_text(NEVER)
    assert dict(mergeflow.tensors(folder / "recipe.yaml", "skills", options=options(folder)))
    assert entries(folder) == []


def test_a_value_of_a_step_that_is_never_cached_is_not_kept_for_another(tmp_path: Path) -> None:
    """Two steps that say the same are one value; it belongs to the first, whatever the second one's policy."""
    folder = three_models(tmp_path)
    step = "{merge_method: linear, cache: %s, models: [{model: a}, {model: b}], parameters: {weight: 1}}"
    (folder / "recipe.yaml").write_text(
        "mergeflow: 1\nmodels: {a: ./a, b: ./b}\nsteps:\n"
        f"  one: {step % 'never'}\n  two: {step % 'always'}\noutputs: {{one: {{}}, two: {{}}}}\n"
    )
    mergeflow.run(folder / "recipe.yaml", folder / "out", options=options(folder))
    assert entries(folder) == []


def test_what_is_cached_is_read_by_a_step_that_is_never_cached(tmp_path: Path) -> None:
    """The policy is about writing: statistics of an earlier run are used."""
    folder = three_models(tmp_path)
    mergeflow.run(folder / "recipe.yaml", folder / "out", options=options(folder))
    (folder / "recipe.yaml").write_text(NEVER)
    report = mergeflow.run(folder / "recipe.yaml", folder / "other", options=options(folder))
    assert report.statistics["computed"] == 0
    assert report.statistics["cached"] > 0


def damage_tensors(folder: Path) -> int:
    """Flip a bit in the numbers of every cached tensor, which only reading them finds; how many there are."""
    files = [
        path
        for path in (folder / "cache").rglob("*")
        if path.is_file() and path.name not in ("zarr.json", "CACHEDIR.TAG")
    ]
    for path in files:
        content = bytearray(path.read_bytes())
        content[0] ^= 1
        path.write_bytes(content)
    return len(files)


def test_looking_computes_damaged_tensors_again(tmp_path: Path) -> None:
    """A damaged entry is dropped with a warning, and what it held is computed again; once, not at every look."""
    folder = three_models(tmp_path)
    (folder / "recipe.yaml").write_text(ALWAYS)
    mergeflow.run(folder / "recipe.yaml", folder / "out", options=options(folder))
    recipe = mergeflow.load(folder / "recipe.yaml")
    expected = dict(step_tensors(recipe, "final", options(folder, cache=None), lambda event: None))
    damaged = damage_tensors(folder)
    assert damaged == len(expected)
    events: list[Event] = []
    found = dict(step_tensors(recipe, "final", options(folder), events.append))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    warnings = [event.message for event in events if isinstance(event, Warned)]
    assert len(warnings) == damaged
    assert all("it is computed again" in warning for warning in warnings)
    events.clear()
    assert dict(step_tensors(recipe, "final", options(folder), events.append)).keys() == expected.keys()
    assert not any(isinstance(event, Warned) for event in events)


def test_looking_reads_a_record_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tensor looks up what it depends on, not what all of them do."""
    folder = three_models(tmp_path)
    mergeflow.run(folder / "recipe.yaml", folder / "out", options=options(folder))
    asked: list[str] = []
    look_up = Cache.lookup

    def counting(cache: Cache, keys: list[str], **more: object) -> object:
        asked.extend(keys)
        return look_up(cache, keys, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Cache, "lookup", counting)
    assert dict(mergeflow.tensors(folder / "recipe.yaml", "final", options=options(folder)))
    assert asked
    assert len(asked) == len(set(asked))


@pytest.fixture
def overflowing(tmp_path: Path) -> Path:
    """Two models whose sum overflows in one tensor, and the recipe that sums them."""
    for seed, name in enumerate(("a", "b")):
        tensors = llama_tensors(seed)
        tensors[LARGE_TENSOR] = torch.full((16,), 3e38)
        write_model(tmp_path / name, tensors)
    (tmp_path / "recipe.yaml").write_text(OVERFLOW)
    settle()
    return tmp_path


def test_a_made_infinity_stays_one_that_no_input_had(overflowing: Path) -> None:
    """A run that allows it does not cache it, so a later strict run cannot take it for an input's."""
    allowed = mergeflow.run(overflowing / "recipe.yaml", options=options(overflowing, allow_non_finite=True))
    assert any("none of its inputs had" in warning for warning in allowed.warnings)
    kept = len(entries(overflowing))
    assert kept == len(llama_tensors(0)) - 1  # the other tensors are cached
    recipe = mergeflow.load(overflowing / "recipe.yaml", weight=0.25)
    with pytest.raises(RunError, match="none of its inputs had; look at the parameters and dtype of step s"):
        mergeflow.run(recipe, options=options(overflowing))


def test_an_output_that_is_cached_too_is_compared_once(tmp_path: Path) -> None:
    """A step that is written and kept: whether its output equals an input is told of the output alone."""
    folder = three_models(tmp_path)
    shutil.copytree(folder / "a", folder / "twin")
    settle()
    (folder / "recipe.yaml").write_text(
        "mergeflow: 1\nmodels: {a: ./a, b: ./twin}\nsteps:\n"
        "  s:\n    merge_method: linear\n    cache: always\n"
        "    models: [{model: a, parameters: {weight: 0.5}}, {model: b, parameters: {weight: 0.5}}]\n"
        "outputs: {s: {dtype: bfloat16, path: ./out}}\n"
    )
    report = mergeflow.run(folder / "recipe.yaml", options=options(folder))
    assert not any("identical" in warning for warning in report.warnings)
