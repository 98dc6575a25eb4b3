"""What of a planned output exists already: kept, resumed, rebuilt, and tensors to copy inside a rebuilt shard."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from output_builders import content_of, shards_of, snapshot, states, tensor, tensors, write_model, write_places

from mergeflow.dtypes import BFLOAT16
from mergeflow.output.compare import ShardWork, bytes_to_write, compare
from mergeflow.output.layout import OutputTensor, plan_shards
from mergeflow.output.staging import abandon, complete_shard, prepare
from mergeflow.output.target import inspect_target


def compared(path: Path, keys: dict[str, str] | str, limit: int = 128) -> tuple[ShardWork, ...]:
    return compare(inspect_target(path), plan_shards(tensors(keys), limit))


def test_everything_is_rebuilt_where_nothing_was(tmp_path: Path) -> None:
    """For an absent target each shard is rebuilt, with a place for each tensor in the partial file."""
    [first, second] = compared(tmp_path / "model", "abc")
    assert states([first, second]) == ["rebuilt", "rebuilt"]
    assert [place.tensor.name for place in first.places] == ["a", "b"]
    assert first.places[1].extent.file == tmp_path / ".model.mergeflow" / (first.shard.file + ".partial")
    assert first.places[1].extent.offset == first.shard.tensors[1].offset
    assert bytes_to_write([first, second]) == first.shard.size + second.shard.size


def test_nothing_is_rebuilt_when_nothing_changed(tmp_path: Path) -> None:
    """The same tensors again: every shard is kept, no byte is to be written."""
    write_model(tmp_path / "model", tensors("abc"))
    works = compared(tmp_path / "model", "abc")
    assert states(works) == ["kept", "kept"]
    assert bytes_to_write(works) == 0


def test_only_the_shard_in_which_a_key_changed_is_rebuilt(tmp_path: Path) -> None:
    """One changed tensor: its shard is rebuilt, its neighbour there is copied from the old file, the rest is kept."""
    earlier = write_model(tmp_path / "model", tensors("abcd")).lock.shards
    [first, second] = compared(tmp_path / "model", {"a": "a", "b": "new", "c": "c", "d": "d"})

    assert states([first, second]) == ["rebuilt", "kept"]
    unchanged, changed = first.places
    assert changed.copy_from is None
    assert unchanged.copy_from is not None
    assert unchanged.copy_from.file == tmp_path / "model" / earlier[0].file
    with unchanged.copy_from.file.open("rb") as file:
        assert os.pread(file.fileno(), 64, unchanged.copy_from.offset) == content_of(unchanged.tensor)


def test_a_shard_survives_the_renumbering_of_its_neighbours(tmp_path: Path) -> None:
    """A tensor more gives every shard another name; those whose content is the same are kept all the same."""
    write_model(tmp_path / "model", tensors("abcd"))
    works = compared(tmp_path / "model", "abcde")
    assert states(works) == ["kept", "kept", "rebuilt"]
    assert [work.source.name for work in works if work.source] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


def test_a_tensor_is_found_by_its_key_whatever_its_name(tmp_path: Path) -> None:
    """A renamed tensor has the same bytes, so it is copied from where they are."""
    write_model(tmp_path / "model", tensors({"layers.0": "k0", "layers.1": "k1"}))
    [work] = compared(tmp_path / "model", {"layers.0": "k1", "layers.1": "k0"})
    assert work.state == "rebuilt"
    assert all(place.copy_from is not None for place in work.places)


def test_another_limit_copies_every_tensor(tmp_path: Path) -> None:
    """Another max_shard_size changes every shard and no tensor: all are copied, none is computed."""
    write_model(tmp_path / "model", tensors("abcd"))
    [work] = compared(tmp_path / "model", "abcd", limit=0)
    assert work.state == "rebuilt"
    assert all(place.copy_from is not None for place in work.places)


def test_a_key_that_lies_about_its_size_is_not_copied(tmp_path: Path) -> None:
    """Should one key ever stand for two sizes, the tensor is computed."""
    write_model(tmp_path / "model", [tensor("a", key="k")])
    [work] = compare(inspect_target(tmp_path / "model"), plan_shards([tensor("a", key="k", shape=(5,))], 0))
    assert work.places[0].copy_from is None


def test_a_shard_that_somebody_changed_is_rebuilt_and_not_copied_from(tmp_path: Path) -> None:
    """Nothing is taken from a shard that is not as it was written."""
    lock = write_model(tmp_path / "model", tensors("abcd")).lock
    os.truncate(tmp_path / "model" / lock.shards[0].file, 100)
    works = compared(tmp_path / "model", "abcd")
    assert states(works) == ["rebuilt", "kept"]
    assert all(place.copy_from is None for place in works[0].places)


def test_tensors_without_a_key_are_always_rebuilt(tmp_path: Path) -> None:
    """Nothing is assumed about a tensor without a key: neither its shard nor the tensor is taken from before."""
    planned = [OutputTensor("a", BFLOAT16, (4, 8), None)]
    write_model(tmp_path / "model", planned)
    [work] = compare(inspect_target(tmp_path / "model"), plan_shards(planned, 0))
    assert work.state == "rebuilt"
    assert work.places[0].copy_from is None


def test_completed_shards_of_an_interrupted_run_are_resumed(tmp_path: Path) -> None:
    """What an interrupted run completed counts; what it had only begun does not."""
    shards = shards_of("abcdef")
    staging = prepare(tmp_path / "model", shards)
    write_places(replace(staging, works=staging.works[:2]))
    abandon(staging)

    works = compare(inspect_target(tmp_path / "model"), shards)
    assert states(works) == ["resumed", "resumed", "rebuilt"]


def test_a_completed_shard_of_another_plan_is_not_resumed(tmp_path: Path) -> None:
    """A shard that an interrupted run completed under other keys is not used."""
    staging = prepare(tmp_path / "model", shards_of("abcd"))
    complete_shard(staging, staging.works[0].shard)
    abandon(staging)
    assert states(compared(tmp_path / "model", {"a": "a", "b": "new", "c": "c", "d": "d"})) == ["rebuilt", "rebuilt"]


def test_comparing_changes_nothing(tmp_path: Path) -> None:
    """A plan may ask at any time: nothing on disk is touched."""
    write_model(tmp_path / "model", tensors("abcd"))
    before = snapshot(tmp_path)
    compared(tmp_path / "model", "abxd")
    assert snapshot(tmp_path) == before
