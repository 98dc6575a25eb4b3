"""An output is a whole model: what stands beside the weights of the donor stands beside those of the output."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from safetensors.numpy import load_file
from tiny_models import ARCHITECTURES, save

import mergeflow

CARD = "---\nlicense: other\nlicense_name: tiny\nlicense_link: LICENSE\n---\n# A model\n"
BESIDE = {
    "generation_config.json": '{"temperature": 0.5}',
    "preprocessor_config.json": '{"size": 8}',
    "processor_config.json": "{}",
    "video_preprocessor_config.json": "{}",
    "tokenizer.json": "{}",
    "tokenizer_config.json": "{}",
    "modeling_tiny.py": "raise SystemExit('remote code was run')\n",
    "modules.json": '[{"path": "", "type": "sentence_transformers.models.Transformer"}, '
    '{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]',
    "sentence_bert_config.json": "{}",
    "1_Pooling/config.json": '{"pooling_mode_mean_tokens": true}',
    "LICENSE": "free",
}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Two tiny BERTs, the first with everything a model's folder may hold."""
    for seed, name in enumerate("ab"):
        save(ARCHITECTURES["bert"], tmp_path / name, seed)
        (tmp_path / name / "README.md").write_text(CARD)
    for path, text in BESIDE.items():
        (tmp_path / "a" / path).parent.mkdir(exist_ok=True)
        (tmp_path / "a" / path).write_text(text)
    return tmp_path


def merge(models: Path, **fields: object) -> Path:
    configuration = {
        "merge_method": "linear",
        "models": [{"model": f"{models}/{name}", "parameters": {"weight": 1}} for name in "ab"],
    }
    (models / "merge.yaml").write_text(yaml.safe_dump(configuration | fields))
    mergeflow.run(models / "merge.yaml", models / "out")
    return models / "out"


def test_every_file_beside_the_weights_comes_along(models: Path) -> None:
    """Generation and processor settings, tokenizer, remote code (never run), modules, licence: byte for byte."""
    out = merge(models)
    assert {path: (out / path).read_text() for path in BESIDE} == BESIDE


def test_the_output_has_the_dtype_that_was_asked_for(models: Path) -> None:
    """In the file and in config.json."""
    out = merge(models, out_dtype="float16")
    assert {str(array.dtype) for array in load_file(out / "model.safetensors").values()} == {"float16"}
    assert json.loads((out / "config.json").read_text())["dtype"] == "float16"


def test_the_card_is_the_hubs(models: Path) -> None:
    """Read by the hub's own client: the licence that both state, the library, our tags, and no path as a base model."""
    data = ModelCard((merge(models) / "README.md").read_text()).data
    assert (data.license, data.license_name, data.license_link) == ("other", "tiny", "LICENSE")
    assert data.library_name == "sentence-transformers"
    assert data.tags == ["mergeflow", "merge"]
    assert data.base_model is None
