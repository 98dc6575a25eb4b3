"""Weights of 8 bits with scales become the numbers they stand for; weights packed in other ways are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from model_files import Entries, write_weights
from safetensors.torch import load_file, save_file

import mergeflow
from mergeflow.errors import CheckpointError
from mergeflow.models.open import open_model
from mergeflow.models.records import Checkpoint, TensorSource, TensorView
from mergeflow.recipe.records import ModelReference

WEIGHT = "model.layers.0.mlp.up_proj.weight"
DEEPSEEK = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}


def opened(folder: Path, entries: Entries, config: dict[str, object] | None = None) -> Checkpoint:
    write_weights(folder / "model.safetensors", entries)
    (folder / "config.json").write_text(json.dumps(config or {}))
    return open_model(ModelReference(str(folder)), [], download=False)


def refusal(folder: Path, entries: Entries, config: dict[str, object] | None = None) -> str:
    with pytest.raises(CheckpointError) as found:
        opened(folder, entries, config)
    return str(found.value)


def test_scales_of_exponents_alone_are_refused_by_name(tmp_path: Path) -> None:
    """F8_E8M0 is no format that is read; the message names the tensor and what to merge instead."""
    scale = f"{WEIGHT}_scale_inv"
    save_file(
        {WEIGHT: torch.zeros(256, 128).to(torch.float8_e4m3fn), scale: torch.ones(2, 1).to(torch.float8_e8m0fnu)},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(CheckpointError) as found:
        open_model(ModelReference(str(tmp_path)), [], download=False)
    assert f"tensor '{scale}' has dtype 'F8_E8M0'" in str(found.value)
    assert "merge the model it was made from" in str(found.value)


class TestScales:
    @pytest.mark.parametrize(
        ("shape", "scale", "suffix", "block"),
        [
            ((256, 384), (2, 3), "_scale_inv", (128, 128)),
            ((130, 257), (2, 3), "_scale_inv", (128, 128)),
            ((5, 7), (1, 1), "_scale_inv", (128, 128)),
            ((6, 8), (6, 1), "_scale", (1, 8)),
            ((6, 8), (6,), "_scale", (1, 8)),
            ((600, 8), (1,), "_scale", (600, 8)),
            ((600, 8), (), "_scale", (600, 8)),
            ((4, 256, 128), (4, 2, 1), "_scale_inv", (128, 128)),
        ],
    )
    def test_the_block_is_found_from_the_shapes(
        self, tmp_path: Path, shape: tuple[int, ...], scale: tuple[int, ...], suffix: str, block: tuple[int, int]
    ) -> None:
        """A weight with its scales is one view in float32, stored in bfloat16; the scales are no tensor any more."""
        entries: Entries = {WEIGHT: ("F8_E4M3", shape), WEIGHT + suffix: ("F32", scale), "other": ("BF16", (3,))}
        found = opened(tmp_path, entries)
        assert set(found.tensors) == {WEIGHT, "other"}
        weight = found.tensors[WEIGHT]
        assert isinstance(weight, TensorView)
        assert (weight.op, weight.shape, weight.dtype.name, weight.stored.name) == (
            "block_scaled",
            shape,
            "float32",
            "bfloat16",
        )
        assert weight.parameters == (("block", block),)

    def test_the_configuration_says_the_block_and_the_dtype(self, tmp_path: Path) -> None:
        """`weight_block_size` and `torch_dtype` are believed; how it was quantised is no part of the model any more."""
        config = {
            "torch_dtype": "float16",
            "quantization_config": {**DEEPSEEK, "weight_block_size": [64, 32]},
            "text_config": {"quantization_config": DEEPSEEK, "a": 1},
        }
        found = opened(tmp_path, {WEIGHT: ("F8_E4M3", (128, 64)), WEIGHT + "_scale_inv": ("F32", (2, 2))}, config)
        weight = found.tensors[WEIGHT]
        assert isinstance(weight, TensorView)
        assert (weight.parameters, weight.stored.name) == ((("block", (64, 32)),), "float16")
        assert found.config == {"torch_dtype": "float16", "text_config": {"a": 1}}

    def test_scales_of_activations_go_too(self, tmp_path: Path) -> None:
        """What belongs to a quantised module's activations and to the cache is no tensor of the model."""
        module = WEIGHT.removesuffix(".weight")
        beside = {module + ".input_scale": ("F32", ()), "model.layers.0.self_attn.k_scale": ("F32", ())}
        entries: Entries = {WEIGHT: ("I8", (4, 8)), WEIGHT + "_scale": ("BF16", (4, 1)), **beside}
        assert set(opened(tmp_path, entries).tensors) == {WEIGHT}

    def test_a_plain_fp8_tensor_stays_as_it_is(self, tmp_path: Path) -> None:
        """Without scales, 8-bit numbers are numbers, and the configuration is left alone."""
        found = opened(tmp_path, {WEIGHT: ("F8_E4M3", (4, 8))}, {"quantization_config": DEEPSEEK})
        assert isinstance(found.tensors[WEIGHT], TensorSource)
        assert found.config == {"quantization_config": DEEPSEEK}

    def test_scales_that_do_not_fit(self, tmp_path: Path) -> None:
        """Scales of another shape, and offsets, are refused: guessing would merge garbage."""
        scales: Entries = {WEIGHT: ("F8_E4M3", (256, 256)), WEIGHT + "_scale_inv": ("F32", (3, 2))}
        assert "neither one for the whole, nor for each row" in refusal(tmp_path / "a", scales)
        offset: Entries = {
            WEIGHT: ("I8", (4, 8)),
            WEIGHT + "_scale": ("F32", (4, 1)),
            WEIGHT + "_zero_point": ("I8", (4, 1)),
        }
        assert "quantised with an offset" in refusal(tmp_path / "b", offset)

    @pytest.mark.parametrize("dtypes", [("F8_E4M3", "F8_E4M3"), ("F8_E4M3", "BF16")])
    def test_experts_with_scales_are_packed(self, tmp_path: Path, dtypes: tuple[str, str]) -> None:
        """Experts in fp8, or some of them in bfloat16, are one packed view."""
        entries: dict[str, tuple[str, tuple[int, ...]]] = {}
        for number, dtype in enumerate(dtypes):
            for part in ("gate", "up", "down"):
                name = f"model.layers.0.mlp.experts.{number}.{part}_proj.weight"
                entries[name] = (dtype, (256, 256))
                if dtype == "F8_E4M3":
                    entries[name + "_scale_inv"] = ("F32", (2, 2))
        found = opened(tmp_path, entries).tensors
        assert set(found) == {f"model.layers.0.mlp.experts.{part}_proj" for part in ("gate_up", "down")}
        packed = found["model.layers.0.mlp.experts.gate_up_proj"]
        assert isinstance(packed, TensorView)
        assert (packed.op, packed.shape, packed.dtype.name) == ("concatenate", (2, 512, 256), "float32")
        assert packed.stored.name == "bfloat16"

    def test_experts_of_two_dtypes_are_packed(self, tmp_path: Path) -> None:
        """Plain experts, one in float16 and one in bfloat16, are packed in float32, which holds both."""
        entries: dict[str, tuple[str, tuple[int, ...]]] = {
            f"m.experts.{number}.{part}_proj.weight": (dtype, (4, 4))
            for number, dtype in enumerate(("F16", "BF16"))
            for part in ("gate", "up", "down")
        }
        packed = opened(tmp_path, entries).tensors["m.experts.down_proj"]
        assert (type(packed), packed.dtype.name, packed.stored.name) == (TensorView, "float32", "float32")


class TestRefused:
    @pytest.mark.parametrize(
        ("names", "method"),
        [
            (("l.qweight", "l.qzeros", "l.scales"), "GPTQ or AWQ"),
            (("l.weight", "l.weight.absmax", "l.weight.quant_map"), "bitsandbytes"),
            (("l.weight", "l.SCB"), "bitsandbytes"),
            (("l.weight_packed", "l.weight_scale"), "compressed-tensors (packed)"),
            (("l.gate_up_proj_blocks", "l.gate_up_proj_scales"), "MXFP4"),
            (("l.W_q", "l.meta"), "HQQ"),
        ],
    )
    def test_names_tell_the_method(self, tmp_path: Path, names: tuple[str, ...], method: str) -> None:
        """Packed weights are refused by the names of their tensors, also without a configuration."""
        message = refusal(tmp_path, dict.fromkeys(names, ("U8", (4, 4))))
        assert f"quantised with {method}," in message
        assert "merge the model it was made from" in message

    @pytest.mark.parametrize(
        ("quantisation", "method"),
        [
            ({"quant_method": "gptq", "bits": 4}, "GPTQ"),
            ({"quant_method": "awq"}, "AWQ"),
            ({"quant_method": "hqq"}, "HQQ"),
            ({"load_in_4bit": True}, "bitsandbytes"),
            ({"quant_method": "tomorrows"}, "tomorrows"),
            ({}, "an unnamed method"),
        ],
    )
    def test_the_configuration_tells_the_method(
        self, tmp_path: Path, quantisation: dict[str, object], method: str
    ) -> None:
        """A method that we do not read is named; a model that was dequantised since is merged as it is."""
        config: dict[str, object] = {"quantization_config": quantisation}
        assert f"quantised with {method}," in refusal(tmp_path / "packed", {"l.weight": ("I32", (4, 4))}, config)
        assert set(opened(tmp_path / "plain", {"l.weight": ("BF16", (4, 4))}, config).tensors) == {"l.weight"}


def test_a_merge_of_fp8_is_the_merge_of_what_it_stands_for(tmp_path: Path) -> None:
    """Merging two models in block-scaled fp8 gives the bytes of merging them dequantised, and a plain config.json."""
    for number in range(2):
        generator = torch.Generator().manual_seed(number)
        matrix = torch.randn(200, 300, generator=generator).to(torch.float8_e4m3fn)
        scale = torch.rand(2, 3, generator=generator) + 0.1
        norm = torch.randn(300, generator=generator).to(torch.bfloat16)
        spread = scale.repeat_interleave(128, 0)[:200].repeat_interleave(128, 1)[:, :300]
        quantised, dense = tmp_path / f"q{number}", tmp_path / f"d{number}"
        for folder in (quantised, dense):
            folder.mkdir()
        config = {"model_type": "llama", "torch_dtype": "bfloat16"}
        (quantised / "config.json").write_text(json.dumps({**config, "quantization_config": DEEPSEEK}))
        (dense / "config.json").write_text(json.dumps(config))
        save_file({WEIGHT: matrix, WEIGHT + "_scale_inv": scale, "n": norm}, quantised / "model.safetensors")
        save_file({WEIGHT: matrix.float() * spread, "n": norm}, dense / "model.safetensors")
    results = {}
    for kind in "qd":
        models = [{"model": str(tmp_path / f"{kind}{number}")} for number in range(2)]
        steps = {"merge_method": "slerp", "base_model": models[0]["model"], "models": models}
        recipe = tmp_path / f"{kind}.yaml"
        recipe.write_text(json.dumps({**steps, "parameters": {"t": 0.3}, "out_dtype": "bfloat16"}))
        mergeflow.run(mergeflow.load(recipe), tmp_path / f"out_{kind}")
        results[kind] = load_file(tmp_path / f"out_{kind}" / "model.safetensors")
    assert results["q"].keys() == results["d"].keys() == {WEIGHT, "n"}
    assert all(torch.equal(results["q"][name], results["d"][name]) for name in results["q"])
    assert json.loads((tmp_path / "out_q" / "config.json").read_text()) == {
        "model_type": "llama",
        "torch_dtype": "bfloat16",
    }
