"""How a model was made, from its lock alone: merges of merges, adapters, locks that lie."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from three_models import settle, three_models
from tiny_checkpoints import raw_bytes

import mergeflow
from mergeflow.errors import OutputError
from mergeflow.output.lineage import MAX_BYTES, MAX_DEPTH, Lineage, LockedModel, lineage_entry
from mergeflow.output.lock import LOCK_FILE
from mergeflow.workflow.lineage import MOST_LINES, Line, lines
from mergeflow.workflow.options import Options

MERGE = "mergeflow: 1\nmodels: {{one: {0}, two: {1}}}\nsteps:\n  {2}:\n    merge_method: linear\n    models:\n"
MERGE += "      - {{model: one, parameters: {{weight: 1}}}}\n      - {{model: two, parameters: {{weight: 2}}}}\n"


def options(folder: Path) -> Options:
    return Options(cache=folder / "cache", state=folder / "state", workers=1, device="cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return three_models(tmp_path)


def merge(folder: Path, one: str, two: str, out: str) -> Path:
    """Merge two models of the folder into a third."""
    recipe = folder / f"{out}.yaml"
    recipe.write_text(MERGE.format(f"./{one}", f"./{two}", f"to_{out}"))
    mergeflow.run(recipe, folder / out, options=options(folder))
    settle()
    return folder / out


def shown(lineage: Lineage) -> list[str]:
    """The tree, a line each, as depth and name."""
    return ["  " * line.depth + (f"made by {line.made.version}" if line.made else line.name) for line in lines(lineage)]


def test_a_lock_tells_steps_and_inputs_with_digests(folder: Path) -> None:
    """The step, what each step reads, and each input's path and digest; a step that is read twice stands in full once."""
    mergeflow.run(folder / "recipe.yaml", options=options(folder))
    for path in (folder / "base", folder / "a", folder / "b", folder / "recipe.yaml"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    found = mergeflow.lineage(folder / "out")
    assert shown(found) == [
        "final",
        "  base",
        "  skills",
        "    skill_a",
        "      a",
        "      base",
        "    skill_b",
        "      b",
        "      base",
        "    base",
    ]
    tree = list(lines(found))
    assert tree[0].text == "slerp(./base, skills, base=./base, t=0.4)"
    assert all(len(line.model.digest) == 64 for line in tree if line.model is not None)
    assert mergeflow.lineage(folder / "out" / LOCK_FILE) == found


def test_merges_of_merges_carry_the_whole_recipe(folder: Path) -> None:
    """Three merges deep, the last lock alone tells of the first inputs, though the folders between are gone."""
    merge(folder, "base", "a", "first")
    merge(folder, "first", "b", "second")
    third = merge(folder, "second", "first", "third")
    for name in ("first", "second"):
        shutil.rmtree(folder / name)
    version = f"made by {mergeflow.__version__}"
    first = ["to_first", "  one", "  two"]
    second = ["to_second", "  one", f"    {version}", *("      " + line for line in first), "  two"]
    assert shown(mergeflow.lineage(third)) == [
        "to_third",
        "  one",
        f"    {version}",
        *("      " + line for line in second),
        "  two",
        f"    {version}",
        *("      " + line for line in first),
    ]


def test_the_same_merge_of_merges_has_the_same_lock(folder: Path, tmp_path: Path) -> None:
    """Byte for byte, also from copies of the inputs whose files have other times; and running again touches nothing."""
    merge(folder, "base", "a", "first")
    second = merge(folder, "first", "b", "second")
    before = (second / LOCK_FILE).stat()
    merge(folder, "first", "b", "second")
    assert (second / LOCK_FILE).stat() == before
    copies = tmp_path / "copies"
    for name in ("first", "b"):
        shutil.copytree(folder / name, copies / name, copy_function=shutil.copy)
    recipe = copies / "second.yaml"
    recipe.write_text((folder / "second.yaml").read_text())
    mergeflow.run(recipe, copies / "second", options=options(copies))
    assert (copies / "second" / LOCK_FILE).read_bytes() == (second / LOCK_FILE).read_bytes()


def test_a_lock_beside_other_weights_is_not_believed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Somebody trained the merge further and left the lock: its lineage is left out, with a warning."""
    first = merge(folder, "base", "a", "first")
    shutil.copy(folder / "b" / "model.safetensors", first / "model.safetensors")
    settle()
    with caplog.at_level(logging.WARNING, "mergeflow"):
        second = merge(folder, "first", "b", "second")
    assert mergeflow.lineage(second).models["./first"].made is None
    assert "model.safetensors is not the file that mergeflow.lock.json states" in caplog.text


HOSTILE: dict[str, Any] = {
    "no JSON": "{",
    "deep": "[" * 100_000,
    "a list": "[]",
    "a key twice": '{"format": 1, "format": 1}',
    "other types": {"models": {"x": 3}},
    "a lineage that is none": {"models": {"x": {"path": "x", "revision": None, "digest": "", "made": 3}}},
    "a path out of the folder": {"shards": [{"file": "../a/model.safetensors", "size": 0, "tensors": {}}]},
    "no shards": {"shards": []},
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_lock_of_an_input_does_no_harm(folder: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it says, the merge is made as without it, a warning says why its lineage is not there."""
    expected = raw_bytes(merge(folder, "base", "b", "plain"))
    change = HOSTILE[kind]
    text = change if isinstance(change, str) else json.dumps(_lock(folder, change))
    (folder / "base" / LOCK_FILE).write_text(text)
    with caplog.at_level(logging.WARNING, "mergeflow"):
        found = raw_bytes(merge(folder, "base", "b", "plain"))
    assert found == expected
    assert "how it was made is left out of the lock" in caplog.text


def _lock(folder: Path, change: dict[str, Any]) -> dict[str, Any]:
    lock = json.loads((folder / "plain" / LOCK_FILE).read_text())
    assert isinstance(lock, dict)
    return lock | change


def nested(depth: int, recipe: str = "r") -> Lineage:
    """A lineage that is `depth` recipes deep."""
    lineage = Lineage("0", recipe, "s", models={"x": LockedModel("x", None, "d")})
    for _ in range(depth):
        lineage = Lineage("0", recipe, "s", models={"x": LockedModel("x", None, "d", made=lineage)})
    return lineage


def test_a_lineage_of_a_huge_input_is_cut_and_not_refused(folder: Path) -> None:
    """The innermost recipes go first, at most MAX_DEPTH of them and MAX_BYTES stay, and the lock can be read again."""
    first = merge(folder, "base", "a", "first")
    contents = json.loads((first / LOCK_FILE).read_text())
    for deep, text in ((MAX_DEPTH - 1, "r"), (MAX_DEPTH - 1, "r" * (MAX_BYTES // 5))):
        contents["models"]["./base"]["made"] = lineage_entry(nested(deep - 1, text))
        (first / LOCK_FILE).write_text(json.dumps(contents))
        second = merge(folder, "first", "b", "second")
        made = mergeflow.lineage(second).models["./first"].made
        assert made is not None
        assert made.depth == (MAX_DEPTH - 1 if text == "r" else 4)


def test_a_lock_nested_too_deeply_is_refused(folder: Path) -> None:
    """A thousand recipes in one another are made up: an error in a sentence, and no overflowing stack."""
    first = merge(folder, "base", "a", "first")
    text = (first / LOCK_FILE).read_text()
    contents = json.loads(text)
    contents["models"]["./base"]["made"] = "HERE"
    one = json.dumps(lineage_entry(Lineage("0", "r", "s", models={"x": LockedModel("x", None, "d")})))
    opened, closed = one[:-1].rsplit('"tensors": {}', 1)
    deep = (opened + '"tensors": {}, "made": ') * 100 + "3" + closed * 0
    (first / LOCK_FILE).write_text(json.dumps(contents).replace('"HERE"', deep))
    with pytest.raises(OutputError):
        mergeflow.lineage(first)
    contents["models"]["./base"]["made"] = lineage_entry(nested(MAX_DEPTH + 1))
    (first / LOCK_FILE).write_text(json.dumps(contents))
    with pytest.raises(OutputError, match=f"more than {MAX_DEPTH} recipes are nested"):
        mergeflow.lineage(first)


def test_a_lock_without_the_field_is_still_a_lock(folder: Path) -> None:
    """The first mergeflow wrote none: such an input has no lineage of inputs, but its own."""
    merge(folder, "base", "a", "first")
    second = merge(folder, "first", "b", "second")
    contents = json.loads((second / LOCK_FILE).read_text())
    del contents["models"]["./first"]["made"]
    (second / LOCK_FILE).write_text(json.dumps(contents))
    assert shown(mergeflow.lineage(second)) == ["to_second", "  one", "  two"]


def test_a_recipe_that_cannot_be_read_gives_a_list() -> None:
    """Of another version, or made up: the steps as the lock has them, and the inputs."""
    for recipe in ("mergeflow: 2\nsteps: {}", "{", "mergeflow: 1\nsteps: {s: {merge_method: ties, base_model: s}}"):
        lineage = Lineage("9", recipe, "s", steps={"s": "ties(...)"}, models={"m": LockedModel("m", "c0", "d")})
        assert list(lines(lineage)) == [Line(0, "s", "ties(...)"), Line(0, "m", model=LockedModel("m", "c0", "d"))]


def test_a_chain_longer_than_pythons_stack_is_listed() -> None:
    """Thousands of steps, or a recipe in which each step reads the one before twice: no more lines than can be read."""
    chain = "mergeflow: 1\nsteps:\n  s0: {merge_method: linear, models: [{model: ./m}]}\n"
    chain += "".join(f"  s{i}: {{merge_method: linear, models: [{{model: s{i - 1}}}]}}\n" for i in range(1, 1500))
    found = list(lines(Lineage("0", chain, "s1499")))
    assert 500 <= len(found) <= MOST_LINES
    assert found[0].name == "s1499"


def test_what_is_no_output_is_refused(folder: Path) -> None:
    """A model without a lock, a name that is not there, a file of something else."""
    for path, message in (("a", "has no mergeflow.lock.json"), ("x", "there is no"), ("recipe.yaml", "not JSON")):
        with pytest.raises(OutputError, match=message):
            mergeflow.lineage(folder / path)
