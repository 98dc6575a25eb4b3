"""The lock file: read back as written, believed only as a whole, the same bytes for the same merge."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from output_builders import LOCK, shards_of, tensor

from mergeflow.dtypes import DTYPES
from mergeflow.errors import OutputError
from mergeflow.output import lock as lock_module
from mergeflow.output.layout import OutputTensor, index_file, plan_shards
from mergeflow.output.lineage import Lineage, bounded
from mergeflow.output.lock import LOCK_FILE, Lock, LockedAdapter, LockedModel, lock_json, parse_lock, read_lock

ADAPTERS = (LockedAdapter("org/lora", "7b2d"), LockedAdapter("./style", None, -0.3))
FULL = replace(
    LOCK,
    models={
        "base": LockedModel("./base", None, "d1", {"a": "t1"}),
        "chat": LockedModel("org/chat", "5a1c", "d2", adapters=ADAPTERS),
    },
    files={"1_Pooling/config.json": "f2", "README.md": "f1"},
    shards=shards_of("abc"),
    samples={shard.file: f"s{shard.file}" for shard in shards_of("abc")},
)


@given(
    recipe=st.text(),
    variables=st.dictionaries(st.text(), st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()),
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), max_size=6),
    data=st.data(),
)
def test_a_lock_reads_back_as_it_was_written(
    recipe: str, variables: dict[str, bool | int | float | str], shapes: list[tuple[int, ...]], data: st.DataObject
) -> None:
    """Whatever the recipe, variables, dtypes and shapes, parsing the text of a lock gives that lock."""
    tensors = [
        OutputTensor(f"t{number}", data.draw(st.sampled_from(DTYPES)), shape, data.draw(st.none() | st.text()))
        for number, shape in enumerate(shapes)
    ]
    shards = plan_shards(tensors, 20)
    samples = {shard.file: data.draw(st.text()) for shard in shards if data.draw(st.booleans())}
    lock = replace(FULL, recipe=recipe, variables=variables, shards=shards, samples=samples)
    assert parse_lock(lock_json(lock)) == lock


def test_the_text_of_a_lock_is_this() -> None:
    """A tensor is one line, with its dtype, shape and place in the file: the format other tools may rely on."""
    name = "a" * 60
    shards = plan_shards([tensor(name)], 0)
    lock = Lock("1.2.3", "r", "final", files={"config.json": "ab"}, shards=shards, samples={"model.safetensors": "cd"})
    assert lock_json(lock).splitlines() == [
        "{",
        ' "format": 1,',
        ' "mergeflow": "1.2.3",',
        ' "step": "final",',
        ' "recipe": "r",',
        ' "variables": {},',
        ' "steps": {},',
        ' "models": {},',
        ' "files": {"config.json": "ab"},',
        ' "shards": [',
        "  {",
        '   "file": "model.safetensors",',
        '   "size": 224,',
        '   "sample": "cd",',
        '   "tensors": {',
        f'    "{name}": {{"key": "{name}", "dtype": "bfloat16", "shape": [4, 8], "offsets": [160, 224]}}',
        "   }",
        "  }",
        " ]",
        "}",
    ]


def test_the_order_in_which_files_were_written_is_not_in_the_lock() -> None:
    """The same files give the same lock text, in whatever order they are handed over."""
    files = {"README.md": "f1", "1_Pooling/config.json": "f2"}
    assert lock_json(replace(FULL, files=files)) == lock_json(FULL)


def test_a_folder_without_a_lock_has_none(tmp_path: Path) -> None:
    """No lock file is None, not an error."""
    assert read_lock(tmp_path) is None


def damaged(change: Callable[[dict[str, Any]], object]) -> str:
    contents = json.loads(lock_json(FULL))
    change(contents)
    return json.dumps(contents)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (lock_json(FULL)[:-40], "not JSON"),
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "a JSON object was expected"),
        (damaged(lambda lock: lock.update(format=2)), "format is 2"),
        (damaged(lambda lock: lock.pop("recipe")), "recipe"),
        (damaged(lambda lock: lock["files"].update({"a": 1})), "files.a"),
        (damaged(lambda lock: lock["variables"].update({"a": None})), "variables.a"),
        (damaged(lambda lock: lock["models"]["chat"].update(revision=3)), "models.chat.revision"),
        (damaged(lambda lock: lock["models"]["chat"].update(adapters={})), "models.chat.adapters should be a list"),
        (damaged(lambda lock: lock["models"]["chat"]["adapters"][0].update(weight="1")), "adapters.weight"),
        (damaged(lambda lock: lock["models"]["chat"]["adapters"][0].update(revision=1)), "adapters.revision"),
        (damaged(lambda lock: lock.update(type="model")), "type should be weights or delta"),
        (damaged(lambda lock: lock.update(seed=-1)), "seed should be a number"),
        (damaged(lambda lock: lock["models"]["chat"].update(made=[])), "models.chat.made should be a mapping"),
        (damaged(lambda lock: lock["models"]["chat"].update(made={"step": 1})), "models.chat.made.mergeflow"),
        (damaged(lambda lock: lock["shards"][0].update(metadata={"format": 1})), "metadata.format should be text"),
        (damaged(lambda lock: lock["shards"][0].update(metadata={"format": "n" * 40})), "do not belong"),
        (lock_json(FULL).replace('"step": "final"', '"step": "final", "step": "other"'), "'step' is given twice"),
        (damaged(lambda lock: lock["shards"][0].update(size=3)), "do not belong"),
        (damaged(lambda lock: lock["shards"][0].update(sample=3)), "sample"),
        (damaged(lambda lock: lock["shards"][0].update(file="../x.safetensors")), "file name"),
        (damaged(lambda lock: lock["shards"][0]["tensors"]["a"].update(offsets=[0, 64])), "do not belong"),
        (damaged(lambda lock: lock["shards"][0]["tensors"]["a"].update(shape=[-1, 8])), "tensor a: shape"),
        (damaged(lambda lock: lock["shards"][0]["tensors"]["a"].update(shape=[True, 8])), "tensor a: shape"),
        (damaged(lambda lock: lock["shards"][0]["tensors"]["a"].update(dtype="float3")), "float3"),
        (damaged(lambda lock: lock["shards"][0]["tensors"].pop("a")), "do not belong"),
    ],
)
def test_a_damaged_lock_is_refused_with_the_reason(tmp_path: Path, text: str, reason: str) -> None:
    """A lock that is cut off, of another format, of wrong types or in contradiction to itself names its fault."""
    (tmp_path / LOCK_FILE).write_text(text)
    with pytest.raises(OutputError, match=reason) as caught:
        read_lock(tmp_path)
    assert str(tmp_path / LOCK_FILE) in str(caught.value)


MADE = Lineage("1.2.3", "r", "s", {"t": 1}, {"s": "linear"}, {"a": LockedModel("a", None, "d")}, 7, seed=5)


def test_how_an_input_was_made_reads_back_as_it_was_written() -> None:
    """Nested recipes, a delta's headers and a seed survive; a lock without any of them has no such fields."""
    nested = replace(MADE, models={"m": LockedModel("m", "c0", "d", adapters=ADAPTERS, made=MADE)})
    models = {"base": LockedModel("./base", None, "d1", {"a": "t1"}, made=nested)}
    shards = plan_shards([tensor("a")], 0, stem="delta", metadata={"format": "pt", "mergeflow.type": "delta"})
    lock = replace(FULL, models=models, shards=shards, samples={}, type="delta", seed=3)
    assert parse_lock(lock_json(lock)) == lock
    assert not any(word in lock_json(FULL) for word in ('"made"', '"metadata"', '"type"', '"seed"'))


def test_a_lineage_is_cut_from_within_until_it_fits() -> None:
    """The outermost recipe stays longest; when even that is too much, nothing is carried."""
    lineage = MADE
    for _ in range(3):
        lineage = replace(MADE, recipe="r" * 1000, models={"m": LockedModel("m", None, "d", made=lineage)})
    assert bounded(lineage) == lineage
    for most, depth in ((3700, 2), (2600, 1), (1500, 0)):
        cut = bounded(lineage, most)
        assert cut is not None
        assert cut.depth == depth
    assert bounded(lineage, 1000) is None


def test_a_lock_larger_than_any_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not read to its end first."""
    monkeypatch.setattr(lock_module, "MAX_LOCK_BYTES", 100)
    (tmp_path / LOCK_FILE).write_text(lock_json(FULL))
    with pytest.raises(OutputError, match="larger than"):
        read_lock(tmp_path)


def test_the_index_of_a_delta_has_a_name_of_its_own() -> None:
    """No loader of models looks for it."""
    planned = [tensor("a"), tensor("b")]
    assert index_file(plan_shards(planned, 64)) == "model.safetensors.index.json"
    assert index_file(plan_shards(planned, 64, stem="delta")) == "delta.safetensors.index.json"


def test_a_lock_that_is_not_text_is_refused(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 are a damaged lock, not a crash."""
    (tmp_path / LOCK_FILE).write_bytes(b"\xff\xfe{}")
    with pytest.raises(OutputError, match="cannot read"):
        read_lock(tmp_path)
