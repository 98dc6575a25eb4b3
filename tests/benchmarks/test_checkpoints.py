"""The benchmark's checkpoints are what they claim to be: Llamas, deterministic, fine-tunes close to their base."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from benchmarks.checkpoints import NAMES, SIZES, Shape, make_checkpoints, with_layers, write_checkpoint

SMALL = Shape(layers=2, hidden=32, intermediate=48, heads=4, kv_heads=2, vocabulary=64)


def test_the_default_shape_is_tinyllama() -> None:
    """22 layers, untied head: the 1.1 billion parameters that TinyLlama has."""
    assert SIZES["1.1b"].parameters() == 1_100_048_384


def test_every_tensor_is_there_in_bfloat16_and_in_its_shape(tmp_path: Path) -> None:
    """The file holds the tensors that the shape lists, and nothing else."""
    write_checkpoint(tmp_path / "base", SMALL, "base")
    stored = load_file(tmp_path / "base" / "model.safetensors")
    assert {name: value.shape for name, value in stored.items()} == SMALL.tensors()
    assert {value.dtype for value in stored.values()} == {np.dtype(ml_dtypes.bfloat16)}


def test_a_fine_tune_leaves_about_half_of_the_elements_as_they_were(tmp_path: Path) -> None:
    """Deltas are mostly below the resolution of bfloat16, as in real fine-tunes, but not all of them."""
    made = make_checkpoints(tmp_path, SMALL)
    base, tune = (load_file(made[name] / "model.safetensors") for name in ("base", "tune-1"))
    matrices = [name for name in base if base[name].ndim == 2]
    same = np.mean(np.concatenate([(base[name] == tune[name]).ravel() for name in matrices]))
    assert 0.4 < same < 0.7


def test_the_same_bytes_come_out_every_time_and_different_ones_for_each_model(tmp_path: Path) -> None:
    """Figures of two days are of the same models."""
    first = make_checkpoints(tmp_path / "first", SMALL)
    second = make_checkpoints(tmp_path / "second", SMALL)
    bytes_of = {name: (first[name] / "model.safetensors").read_bytes() for name in NAMES}
    assert all((second[name] / "model.safetensors").read_bytes() == bytes_of[name] for name in NAMES)
    assert len(set(bytes_of.values())) == len(NAMES)


def test_the_size_of_a_block_does_not_change_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are a matter of memory only."""
    write_checkpoint(tmp_path / "whole", SMALL, "tune-2")
    monkeypatch.setattr("benchmarks.checkpoints.BLOCK_ELEMENTS", 100)
    write_checkpoint(tmp_path / "blocks", SMALL, "tune-2")
    whole, blocks = (tmp_path / name / "model.safetensors" for name in ("whole", "blocks"))
    assert whole.read_bytes() == blocks.read_bytes()


def test_transformers_knows_the_model_by_its_configuration(tmp_path: Path) -> None:
    """config.json and the tensors fit each other: the model loads with nothing missing and nothing left over."""
    from transformers import AutoModelForCausalLM

    write_checkpoint(tmp_path / "base", SMALL, "base")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert not any(loaded[1].values())


def test_another_number_of_layers_is_written_into_the_configuration(tmp_path: Path) -> None:
    """`--layers` makes a smaller model of the same width."""
    write_checkpoint(tmp_path / "base", with_layers(SMALL, 1), "base")
    assert json.loads((tmp_path / "base" / "config.json").read_text())["num_hidden_layers"] == 1
    assert not any("layers.1." in name for name in load_file(tmp_path / "base" / "model.safetensors"))
