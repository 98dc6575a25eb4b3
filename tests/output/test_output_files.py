"""Which of the donor's files come along: all that belongs to the model, nothing that would be wrong beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mergeflow.output.files import donor_files, is_tokenizer_file, library_name

MINILM = (
    ".gitattributes",
    "1_Pooling/config.json",
    "README.md",
    "config.json",
    "config_sentence_transformers.json",
    "data_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)


def test_everything_that_is_not_a_weight_is_copied_or_listed(tmp_path: Path) -> None:
    """Of a sentence-transformers model all files are copied, but those that we write: every file is accounted for."""
    found = donor_files(tmp_path, MINILM)
    assert [file.path for file in found.copied] == sorted(set(MINILM) - {"README.md", "config.json"})
    assert [file.content for file in found.copied] == [tmp_path / file.path for file in found.copied]
    assert found.replaced == ("README.md", "config.json")
    assert found.left_out == ()


@pytest.mark.parametrize(
    "path",
    [
        "LICENSE", "generation_config.json", "chat_template.jinja", "preprocessor_config.json", "modeling_x.py",
        "processor_config.json", "video_preprocessor_config.json", "configuration_x.py", "nested/remote/code.py",
        "merges.txt", "tokenizer.model", "nested/folder/notes.txt", "added.bin.txt",
    ],
)  # fmt: skip
def test_a_models_own_files_are_copied(tmp_path: Path, path: str) -> None:
    """Tokenizers, templates, processors, remote code, licences, whatever else: copied as they are."""
    assert [file.path for file in donor_files(tmp_path, [path]).copied] == [path]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("pytorch_model.bin", "weights of the donor"),
        ("pytorch_model.bin.index.json", "weights of the donor"),
        ("model-00001-of-00002.safetensors", "weights of the donor"),
        ("consolidated.safetensors", "weights of the donor"),
        ("original/consolidated.00.pth", "weights of the donor"),
        ("tf_model.h5", "weights of the donor"),
        ("model-Q4.gguf", "weights of the donor"),
        ("onnx/model.onnx", "export"),
        ("onnx/config.json", "export"),
        ("openvino/openvino_model.xml", "export"),
        ("adapter_config.json", "adapter"),
        ("adapter_model.safetensors", "adapter"),
        ("trainer_state.json", "training"),
        ("checkpoint-500/optimizer.pt", "training"),
        ("mergekit_config.yml", "how the donor was made"),
        (".git/HEAD", "not part of the model"),
        (".cache/huggingface/download/config.json.metadata", "not part of the model"),
        ("code/__pycache__/x.pyc", "not part of the model"),
    ],
)
def test_what_would_be_wrong_beside_merged_weights_is_left_out_with_a_reason(
    tmp_path: Path, path: str, reason: str
) -> None:
    """Other weights, exports of them, adapters that loaders apply, traces of training: listed, not copied."""
    found = donor_files(tmp_path, [path])
    assert found.copied == ()
    [(left_out, why)] = found.left_out
    assert left_out == path
    assert reason in why


def test_the_lock_and_index_of_a_donor_are_replaced_by_ours(tmp_path: Path) -> None:
    """A donor that is itself an output of mergeflow gives neither its lock nor its index."""
    files = ["mergeflow.lock.json", "model.safetensors.index.json"]
    found = donor_files(tmp_path, files)
    assert (found.copied, found.replaced) == ((), tuple(files))


def test_weights_of_modules_beside_the_encoder_come_along(tmp_path: Path) -> None:
    """A dense layer of a sentence-transformers model has weights that no merge touches and no loader can do without."""
    modules = [
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"path": "2_Dense", "type": "sentence_transformers.models.Dense"},
        {"path": "../outside", "type": "x.Dense"},
        {"path": "/etc", "type": "x.Dense"},
        "nonsense",
        {"path": 3, "type": "x"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "2_Dense").mkdir()
    (tmp_path / "2_Dense" / "model.safetensors").touch()
    (tmp_path / "2_Dense" / "config.json").touch()
    found = donor_files(tmp_path, ["modules.json", "2_Dense/config.json", "other/model.safetensors"])

    assert [file.path for file in found.copied] == ["2_Dense/config.json", "2_Dense/model.safetensors", "modules.json"]
    assert [path for path, _ in found.left_out] == ["other/model.safetensors"]


@pytest.mark.parametrize("text", ["{", '{"a": 1}', "[[]]", "\xff"])
def test_a_strange_modules_file_is_just_a_file(tmp_path: Path, text: str) -> None:
    """A modules.json that is not what it should be is copied like any other."""
    (tmp_path / "modules.json").write_text(text, encoding="latin-1")
    assert [file.path for file in donor_files(tmp_path, ["modules.json"]).copied] == ["modules.json"]


def test_a_tokenizer_from_another_model_replaces_the_donors_as_a_whole(tmp_path: Path) -> None:
    """All tokenizer files come from the tokenizer's model, none from the donor; everything else from the donor."""
    donor, other = tmp_path / "donor", tmp_path / "other"
    found = donor_files(
        donor,
        ["LICENSE", "merges.txt", "tokenizer.json", "vocab.json"],
        tokenizer=(other, ["LICENSE", "config.json", "tokenizer.json", "tokenizer.model"]),
    )
    assert [(file.path, file.content) for file in found.copied] == [
        ("LICENSE", donor / "LICENSE"),
        ("tokenizer.json", other / "tokenizer.json"),
        ("tokenizer.model", other / "tokenizer.model"),
    ]
    assert found.replaced == ("merges.txt", "tokenizer.json", "vocab.json")


def test_files_that_the_caller_writes_are_not_copied(tmp_path: Path) -> None:
    """A caller that builds a tokenizer itself names its files, from wherever they would have come."""
    found = donor_files(
        tmp_path, ["a", "tokenizer.json"], (tmp_path, ["tokenizer.json", "vocab.txt"]), written=["tokenizer.json"]
    )
    assert [file.path for file in found.copied] == ["a", "vocab.txt"]


@pytest.mark.parametrize("path", ["tokenizer.json", "spiece.model", "qwen.tiktoken", "source.spm", "tokenization_x.py"])
def test_tokenizer_files_are_known_by_name(path: str) -> None:
    """The files that tokenizers are made of, of whichever family."""
    assert is_tokenizer_file(path)


@pytest.mark.parametrize("path", ["config.json", "generation_config.json", "1_Pooling/config.json", "LICENSE"])
def test_other_files_are_no_tokenizer_files(path: str) -> None:
    """What is not a tokenizer's stays the donor's."""
    assert not is_tokenizer_file(path)


def test_the_library_is_told_from_the_files() -> None:
    """modules.json means sentence-transformers; anything else is transformers."""
    assert library_name(MINILM) == "sentence-transformers"
    assert library_name(["config.json"]) == "transformers"
