from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import pytest
import torch
from model_files import GOLDEN, write_index, write_weights
from pickled_files import written

from mergeflow.errors import CheckpointError
from mergeflow.models.checkpoint import open_checkpoint

SMALL = {"model.layers.10.w": ("F32", (2,)), "model.layers.2.w": ("F32", (2,)), "embed": ("BF16", (3, 2))}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "models" / "base"
    place.mkdir(parents=True)
    return place


def refused(folder: Path) -> str:
    """The one line with which a folder is refused."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder, "base")
    message = str(caught.value)
    assert "\n" not in message
    return message


def sharded(folder: Path, weight_map: dict[str, object] | None = None) -> None:
    """Two shards and an index."""
    write_weights(folder / "model-1.safetensors", {"a": ("F32", (1,)), "b": ("F32", (2,))})
    write_weights(folder / "model-2.safetensors", {"c": ("F16", (3,))})
    first, second = "model-1.safetensors", "model-2.safetensors"
    write_index(folder, weight_map or {"a": first, "b": first, "c": second})


def test_a_single_file_is_opened_in_natural_order(folder: Path) -> None:
    """Tensors are listed with layer 2 before 10; label, folder, config and files are set."""
    write_weights(folder / "model.safetensors", SMALL)
    (folder / "config.json").write_text('{"model_type": "llama", "layers": 3}')
    checkpoint = open_checkpoint(folder, "./models/base")
    assert list(checkpoint.tensors) == ["embed", "model.layers.2.w", "model.layers.10.w"]
    assert checkpoint.config == {"model_type": "llama", "layers": 3}
    assert (checkpoint.label, checkpoint.folder, checkpoint.revision) == ("./models/base", folder, None)
    assert checkpoint.files == ("config.json",)


def test_a_folder_without_config_has_an_empty_one(folder: Path) -> None:
    """config.json is not required: names and shapes are enough to merge."""
    write_weights(folder / "model.safetensors", SMALL)
    assert open_checkpoint(folder, "base").config == {}


def test_an_index_joins_its_shards(folder: Path) -> None:
    """Each tensor is found in the shard that holds it."""
    sharded(folder)
    tensors = open_checkpoint(folder, "base").tensors
    assert {name: Path(source.segments[0].file.path).name for name, source in tensors.items()} == {
        "a": "model-1.safetensors",
        "b": "model-1.safetensors",
        "c": "model-2.safetensors",
    }


def test_the_index_has_priority_over_a_single_file(folder: Path) -> None:
    """A model.safetensors beside an index is a left-over and is not read."""
    sharded(folder)
    write_weights(folder / "model.safetensors", {"stale": ("F32", (1,))})
    assert list(open_checkpoint(folder, "base").tensors) == ["a", "b", "c"]


def test_a_shard_that_the_index_does_not_name_is_not_read(folder: Path) -> None:
    """Stale shards of an earlier, larger save stay out, even damaged ones."""
    sharded(folder)
    (folder / "model-3.safetensors").write_bytes(b"old")
    assert list(open_checkpoint(folder, "base").tensors) == ["a", "b", "c"]


def test_a_tensor_that_only_the_shard_knows_is_kept(folder: Path) -> None:
    """Weights are never dropped because an index forgot them."""
    sharded(folder, {"a": "model-1.safetensors", "c": "model-2.safetensors"})
    assert list(open_checkpoint(folder, "base").tensors) == ["a", "b", "c"]


def test_a_tensor_in_two_shards_is_refused(folder: Path) -> None:
    """Two tensors of one name cannot both be meant."""
    sharded(folder)
    write_weights(folder / "model-2.safetensors", {"c": ("F16", (3,)), "b": ("F32", (2,))})
    assert "tensor 'b' is also in model-1.safetensors" in refused(folder)


def test_a_tensor_that_its_shard_lacks_is_refused(folder: Path) -> None:
    """The index is held against the headers."""
    sharded(folder, {"a": "model-1.safetensors", "c": "model-1.safetensors"})
    assert "lacks tensor 'c', which the index says is in it" in refused(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    """A shard that was not downloaded is found before anything is merged."""
    sharded(folder)
    (folder / "model-2.safetensors").unlink()
    assert "names 'model-2.safetensors', which is not there" in refused(folder)


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ("/etc/model.safetensors", "points outside the folder"),
        ("../other/model.safetensors", "points outside the folder"),
        ("sub/../../other/model.safetensors", "points outside the folder"),
        ("..\\model.safetensors", "points outside the folder"),
        ("model\0.safetensors", "points outside the folder"),
        ("", "is not a safetensors file"),
        ("pytorch_model-1.bin", "is not a safetensors file"),
        (7, "is not the name of a file"),
        (None, "is not the name of a file"),
        (["model-1.safetensors"], "is not the name of a file"),
    ],
)
def test_an_index_cannot_name_anything_but_its_own_shards(folder: Path, shard: object, message: str) -> None:
    """A path in an index is a stranger's path: it stays in the folder or is refused."""
    sharded(folder, {"a": "model-1.safetensors", "x": shard})
    assert message in refused(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "a JSON object was expected"),
        ("{}", "has no weight_map"),
        ('{"weight_map": {}}', "has no weight_map"),
        ('{"weight_map": ["a"]}', "has no weight_map"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "'a' is given twice"),
    ],
)
def test_a_broken_index_is_refused(folder: Path, text: str, message: str) -> None:
    """What is not an index is said to be none, with the file's name."""
    sharded(folder)
    (folder / "model.safetensors.index.json").write_text(text)
    refusal = refused(folder)
    assert message in refusal
    assert "model.safetensors.index.json" in refusal


def test_a_shard_in_a_subfolder_is_read(folder: Path) -> None:
    """An index may divide shards over folders below it."""
    write_weights(folder / "part" / "one.safetensors", {"a": ("F32", (1,))})
    write_index(folder, {"a": "./part/one.safetensors"})
    assert list(open_checkpoint(folder, "base").tensors) == ["a"]


def test_a_shard_may_be_a_link(folder: Path, tmp_path: Path) -> None:
    """The hub's cache, and many a full disk, keep weights behind links."""
    elsewhere = write_weights(tmp_path / "disk" / "weights", {"a": ("F32", (1,))})
    (folder / "model.safetensors").symlink_to(elsewhere)
    assert list(open_checkpoint(folder, "base").tensors) == ["a"]


def test_one_safetensors_file_of_another_name_will_do(folder: Path) -> None:
    """A folder with exactly one file of weights leaves no doubt."""
    write_weights(folder / "consolidated.safetensors", {"a": ("F32", (1,))})
    assert list(open_checkpoint(folder, "base").tensors) == ["a"]


def test_several_files_without_an_index_are_refused(folder: Path) -> None:
    """Which of them are the model is not guessed."""
    sharded(folder)
    (folder / "model.safetensors.index.json").unlink()
    assert "holds 2 safetensors files" in refused(folder)


def test_pickled_weights_are_read_when_there_is_nothing_better(folder: Path) -> None:
    """pytorch_model.bin is the model, until a safetensors file of the folder is."""
    written(folder / "pytorch_model.bin", {"a": torch.zeros(2)})
    written(folder / "training_args.bin", {"lr": 1})
    written(folder / "optimizer.pt", {"state": torch.zeros(2)})
    assert list(open_checkpoint(folder, "base").tensors) == ["a"]
    write_weights(folder / "model.safetensors", {"b": ("F32", (1,))})
    assert list(open_checkpoint(folder, "base").tensors) == ["b"]


def test_an_index_joins_pickled_shards(folder: Path) -> None:
    """pytorch_model.bin.index.json is read like the other index, and wins over a single file."""
    written(folder / "pytorch_model-1.bin", {"a": torch.zeros(2), "only here": torch.zeros(1)})
    written(folder / "pytorch_model-2.bin", {"b": torch.zeros(3, 2).t()})
    written(folder / "pytorch_model.bin", {"stale": torch.zeros(1)})
    weight_map = {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert list(open_checkpoint(folder, "base").tensors) == ["a", "b", "only here"]


@pytest.mark.parametrize("shard", ["../x.bin", "/etc/x.bin", "x.safetensors", "x", ""])
def test_an_index_of_pickles_names_only_pickles_in_the_folder(folder: Path, shard: str) -> None:
    """The paths of this index are held to the same rules."""
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    assert re.search("points outside the folder|is not a pickled file", refused(folder))


@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "weights.ckpt", "weights.bin"])
def test_the_only_pickled_file_is_the_model(folder: Path, name: str) -> None:
    """Whatever its name, when there is one; of two, none is chosen."""
    written(folder / name, {"a": torch.zeros(2)})
    assert list(open_checkpoint(folder, "base").tensors) == ["a"]
    written(folder / "other.pt", {"a": torch.zeros(2)})
    assert "holds 2 pickled files" in refused(folder)


def test_a_file_of_weights_is_a_model(folder: Path) -> None:
    """A bare file is opened like a folder that holds nothing else."""
    write_weights(folder / "x.safetensors", SMALL)
    written(folder / "y.pt", {"a": torch.zeros(2)})
    (folder / "config.json").write_text('{"model_type": "llama"}')
    for name, tensors in (("x.safetensors", ["embed", "model.layers.2.w", "model.layers.10.w"]), ("y.pt", ["a"])):
        checkpoint = open_checkpoint(folder / name, name)
        assert (list(checkpoint.tensors), checkpoint.folder) == (tensors, folder / name)
        assert (checkpoint.config, checkpoint.files) == ({}, ())


def test_an_empty_file_of_weights_is_refused(folder: Path) -> None:
    """No tensors, no model."""
    written(folder / "y.pt", {"epoch": 3})
    assert "y.pt holds no tensors" in refused(folder / "y.pt")


def test_an_adapter_is_not_taken_for_a_model(folder: Path) -> None:
    """The folder of a LoRA adapter is named as what it is."""
    write_weights(folder / "adapter_model.safetensors", {"base.lora_A.weight": ("F32", (1,))})
    (folder / "adapter_config.json").write_text("{}")
    assert "LoRA adapter" in refused(folder)


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    """A folder with only a config is no model."""
    (folder / "config.json").write_text("{}")
    assert "no weights in" in refused(folder)


def test_a_file_without_tensors_is_refused(folder: Path) -> None:
    """An empty safetensors file is sound, but no model."""
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    assert "holds no tensors" in refused(folder)


@pytest.mark.parametrize("text", ["{", "[]", '"x"', "\x00", "[" * 100_000])
def test_a_broken_config_is_refused(folder: Path, text: str) -> None:
    """A config.json that is no JSON object is an error of the checkpoint."""
    write_weights(folder / "model.safetensors", SMALL)
    (folder / "config.json").write_text(text)
    assert "config.json" in refused(folder)


def test_a_huge_config_is_not_read(folder: Path) -> None:
    """A config.json of 20 MB is refused for its size."""
    write_weights(folder / "model.safetensors", SMALL)
    (folder / "config.json").write_text(json.dumps({"x": "y" * 20_000_000}))
    assert "larger than 20 MB" in refused(folder)


def test_a_config_may_hold_infinity(folder: Path) -> None:
    """transformers writes Infinity for open bounds; that is no reason to refuse a model."""
    write_weights(folder / "model.safetensors", SMALL)
    (folder / "config.json").write_text('{"time_step_limit": [0.0, Infinity]}')
    assert open_checkpoint(folder, "base").config == {"time_step_limit": [0.0, float("inf")]}


def test_a_missing_folder_offers_its_neighbour(folder: Path) -> None:
    """A misspelt folder name is answered with the nearest one beside it."""
    assert f"did you mean '{folder}'?" in refused(folder.parent / "bsae")


def test_a_missing_parent_is_what_is_offered(folder: Path, tmp_path: Path) -> None:
    """When the parent is misspelt, the parent is corrected."""
    assert f"did you mean '{folder.parent}'?" in refused(tmp_path / "model" / "base" / "x")


def test_a_missing_folder_without_a_neighbour_is_said_plainly(tmp_path: Path) -> None:
    """No suggestion is made up."""
    assert refused(tmp_path / "zzz") == f"base: no such folder: {tmp_path / 'zzz'}"


def test_a_file_of_something_else_is_no_model(folder: Path) -> None:
    """Naming another file is answered with what a model is named by."""
    (folder / "notes.txt").write_text("weights")
    assert "is a file, but not one of weights (.safetensors, .bin, .pt, .pth, .ckpt" in refused(folder / "notes.txt")


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden checkpoints are not on this machine")
def test_every_golden_model_opens() -> None:
    """All tiny checkpoints of the golden cases open, with config and tensors."""
    folders = sorted(path.parent for path in (GOLDEN / "models").rglob("config.json"))
    assert folders
    for place in folders:
        checkpoint = open_checkpoint(place, place.name)
        assert checkpoint.tensors
        assert checkpoint.config["model_type"]
        assert "config.json" in checkpoint.files
