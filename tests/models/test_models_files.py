from __future__ import annotations

from pathlib import Path

import pytest

from mergeflow.models.files import choose, folder_files, is_weights


def fill(folder: Path, *paths: str) -> None:
    """Create files with their path as content."""
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(path)


@pytest.mark.parametrize(
    "path",
    [
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "model.safetensors.index.fp16.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "tf_model.h5",
        "flax_model.msgpack",
        "model.Q4_K_M.GGUF",
        "optimizer.pt",
        "rng_state_0.pth",
        "training_args.bin",
        "model.onnx",
        "model.ckpt.index",
        "model.ckpt.data-00000-of-00001",
        "model.ckpt-1000.meta",
    ],
)
def test_weights_are_known_by_their_names(path: str) -> None:
    """Every format of weights, its index, and a trainer's state count as weights."""
    assert is_weights(path)


@pytest.mark.parametrize(
    "path",
    [
        "config.json",
        "tokenizer.model",
        "vocab.txt",
        "merges.txt",
        "README.md",
        "chat_template.jinja",
        "bin",
        "a.bin.txt",
    ],
)
def test_what_travels_is_not_weights(path: str) -> None:
    """Tokenizers, templates, settings and texts are no weights."""
    assert not is_weights(path)


def test_a_sentence_transformers_folder_travels_whole(tmp_path: Path) -> None:
    """Its numbered folders, modules.json and vocabulary are carried; weights and hidden files are not."""
    carried = ("1_Pooling/config.json", "config.json", "modules.json", "tokenizer.json", "vocab.txt")
    fill(tmp_path, *carried, "model.safetensors", ".gitattributes", ".git/config", ".cache/x.json", "2_Dense/.hidden")
    assert folder_files(tmp_path).carried == carried
    assert folder_files(tmp_path).left_out == ()


def test_our_own_lock_file_stays_behind(tmp_path: Path) -> None:
    """The lock describes the model it lies beside, not one merged from it."""
    fill(tmp_path, "mergeflow.lock.json", "config.json")
    assert folder_files(tmp_path).carried == ("config.json",)


def test_a_subfolder_with_weights_is_another_model() -> None:
    """A training checkpoint and an export are left out whole, and listed."""
    paths = ["config.json", "checkpoint-500/config.json", "checkpoint-500/model.safetensors", "onnx/model.onnx"]
    chosen = choose([*paths, "onnx/deep/config.json", "1_Pooling/config.json"])
    assert chosen.carried == ("1_Pooling/config.json", "config.json")
    assert set(chosen.left_out) == {*paths[1:], "onnx/deep/config.json"}


def test_two_folders_deep_is_deep_enough(tmp_path: Path) -> None:
    """Files below a second subfolder do not belong to a model."""
    fill(tmp_path, "a/b/c.json", "a/b/c/d.json")
    assert folder_files(tmp_path).carried == ("a/b/c.json",)
    assert choose(["a/b/c.json", "a/b/c/d.json"]).left_out == ("a/b/c/d.json",)


def test_a_link_out_of_the_folder_is_left_out_and_listed(tmp_path: Path) -> None:
    """What is carried may be published: a downloaded link must not name a private file."""
    fill(tmp_path, "private/key", "model/config.json")
    folder = tmp_path / "model"
    (folder / "README.md").symlink_to(tmp_path / "private" / "key")
    (folder / "assets").symlink_to(tmp_path / "private")
    (folder / "gone.txt").symlink_to(folder / "nowhere")
    assert folder_files(folder).carried == ("config.json",)
    assert folder_files(folder).left_out == ("README.md",)


def test_a_link_inside_the_folder_is_a_file(tmp_path: Path) -> None:
    """Two names for one file of the model are both carried."""
    fill(tmp_path, "a.json")
    (tmp_path / "b.json").symlink_to("a.json")
    assert folder_files(tmp_path).carried == ("a.json", "b.json")


def test_links_of_the_hub_cache_are_files(tmp_path: Path) -> None:
    """A snapshot is made of links into blobs, or from there into the cache's shared blobs."""
    repository = tmp_path / "models--org--name"
    fill(repository, "blobs/abc")
    fill(tmp_path, "blobs/ab/shared", "private")
    snapshot = repository / "snapshots" / "commit"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    (repository / "blobs" / "xyz").symlink_to("../../blobs/ab/shared")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/xyz")
    (snapshot / "evil.txt").symlink_to("../../../private")
    assert folder_files(snapshot).carried == ("config.json", "tokenizer.json")
    assert folder_files(snapshot).left_out == ("evil.txt",)


def test_the_order_is_natural() -> None:
    """Module 2 comes before module 10."""
    assert choose(["10_x/c.json", "2_x/c.json"]).carried == ("2_x/c.json", "10_x/c.json")
