"""GGUF files as models: names, configuration and numbers of transformers; damaged and lying files refused."""

from __future__ import annotations

import hashlib
import json
import struct
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from gguf_files import F16, F32, LAYER, METADATA, Q8_0, TENSORS, Tensors, gguf_bytes, text, write_gguf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mergeflow
from mergeflow.errors import CheckpointError
from mergeflow.models import gguf_header
from mergeflow.models.checkpoint import open_checkpoint
from mergeflow.models.gguf import read_gguf
from mergeflow.models.gguf_config import shortest
from mergeflow.models.gguf_types import TYPES
from mergeflow.models.open import open_model
from mergeflow.models.records import TensorSource, TensorView
from mergeflow.recipe.records import ModelReference

GOLDEN = Path(__file__).parents[1] / "golden" / "gguf"
LAYER_0 = "model.layers.0."
PHI3_LACKS = ("attn_q.weight", "attn_k.weight", "attn_v.weight", "ffn_gate.weight")


def fails(path: Path, content: bytes) -> str:
    with pytest.raises(CheckpointError) as found:
        read_gguf(write_gguf(path, content))
    return str(found.value)


def changed(**metadata: object) -> Mapping[str, object]:
    return {**METADATA, **{key.replace("__", "."): value for key, value in metadata.items()}}


def family(name: str) -> tuple[Mapping[str, object], Tensors]:
    """Metadata and tensors of a small model of one of the architectures that are read."""
    own = "llama" if name == "mixtral" else name
    metadata = {key.replace("llama.", f"{own}."): value for key, value in METADATA.items()}
    metadata |= {"general.architecture": own, f"{own}.attention.key_length": 8, "tokenizer.ggml.padding_token_id": 0}
    tensors = dict(TENSORS)
    if "moe" in name or name == "mixtral":
        for part in ("gate", "up", "down"):
            tensors[f"blk.0.ffn_{part}_exps.weight"] = (Q8_0, (4, *tensors.pop(f"blk.0.ffn_{part}.weight")[1]))
        tensors["blk.0.ffn_gate_inp.weight"] = (F32, (4, 32))
        counts = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}
        metadata |= {f"{own}.{key}": value for key, value in counts.items()}
    if name == "qwen2":
        tensors |= {f"blk.0.attn_{part}.bias": (F32, (rows,)) for part, rows in (("q", 32), ("k", 16), ("v", 16))}
    if name.startswith("qwen3"):
        tensors |= {f"blk.0.attn_{part}_norm.weight": (F32, (8,)) for part in "qk"}
    if name == "phi3":
        tensors = {key: value for key, value in tensors.items() if key[6:] not in PHI3_LACKS}
        tensors |= {"blk.0.attn_qkv.weight": (Q8_0, (64, 32)), "blk.0.ffn_up.weight": (Q8_0, (64, 32))}
    return metadata, tensors


class TestModel:
    def test_the_numbers_are_those_of_transformers(self, tmp_path: Path) -> None:
        """Every tensor of a file by the format's own library, in eleven types, is read as that library reads it."""
        (tmp_path / "r.yaml").write_text(
            f"merge_method: passthrough\nmodels:\n  - model: {GOLDEN / 'tiny.gguf'}\ndtype: float32\n"
        )
        recipe = mergeflow.load(tmp_path / "r.yaml")
        expected = json.loads((GOLDEN / "tiny.json").read_text())
        found = {
            name: hashlib.sha256(np.ascontiguousarray(tensor.float().numpy()).tobytes()).hexdigest()
            for name, tensor in mergeflow.tensors(recipe, "merge")
        }
        assert found == expected

    def test_names_shapes_and_dtypes(self, tmp_path: Path) -> None:
        """Names are transformers'; a quantised matrix is float32, stored as bfloat16; plain ones are as they lie."""
        tensors = read_gguf(write_gguf(tmp_path / "m.gguf")).tensors
        assert set(tensors) == {
            "model.embed_tokens.weight",
            "model.norm.weight",
            LAYER_0 + "input_layernorm.weight",
            LAYER_0 + "post_attention_layernorm.weight",
            *(f"{LAYER_0}self_attn.{part}_proj.weight" for part in "qkvo"),
            *(f"{LAYER_0}mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
        }
        gate, norm, key = (
            tensors[LAYER_0 + name]
            for name in ("mlp.gate_proj.weight", "input_layernorm.weight", "self_attn.k_proj.weight")
        )
        assert isinstance(gate, TensorView)
        assert (gate.op, gate.dtype.name, gate.stored.name, gate.shape) == ("gguf", "float32", "bfloat16", (32, 32))
        assert isinstance(norm, TensorSource)
        assert (norm.dtype.name, norm.shape) == ("float32", (32,))
        assert isinstance(key, TensorView)
        assert (key.op, key.dtype.name, key.parameters) == ("rotary_rows", "float16", (("heads", 2),))

    def test_the_configuration_is_that_of_the_model(self, tmp_path: Path) -> None:
        """config.json follows from the metadata: sizes, heads, and whether the head is the embedding."""
        config = read_gguf(write_gguf(tmp_path / "m.gguf")).config
        assert config == {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "max_position_embeddings": 64,
            "vocab_size": 8,
            "tie_word_embeddings": True,
            "dtype": "bfloat16",
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": None,
            "eos_token_id": None,
        }

    def test_a_configuration_beside_the_file_is_believed(self, tmp_path: Path) -> None:
        """A folder's own config.json says more than the metadata of its only GGUF file."""
        write_gguf(tmp_path / "m.gguf")
        (tmp_path / "config.json").write_text('{"model_type": "mistral"}')
        assert open_checkpoint(tmp_path, "m").config == {"model_type": "mistral"}
        assert open_checkpoint(tmp_path / "m.gguf", "m").config["model_type"] == "llama"

    def test_experts_are_packed(self, tmp_path: Path) -> None:
        """A Mixtral's experts, one tensor a layer in GGUF, are the packed tensors of any other Mixtral's."""
        layer = {name: found for name, found in LAYER.items() if "ffn_" not in name or "norm" in name}
        experts = {f"blk.0.ffn_{part}_exps.weight": (Q8_0, (4, 32, 32)) for part in ("gate", "up", "down")}
        tensors = {
            "token_embd.weight": (Q8_0, (8, 32)),
            **layer,
            **experts,
            "blk.0.ffn_gate_inp.weight": (F32, (4, 32)),
        }
        metadata = changed(llama__expert_count=4, llama__expert_used_count=2)
        write_gguf(tmp_path / "m.gguf", gguf_bytes(metadata, tensors))
        found = open_model(ModelReference("./m.gguf"), [tmp_path], download=False)
        assert found.config["model_type"] == "mixtral"
        packed = found.tensors[LAYER_0 + "mlp.experts.gate_up_proj"]
        assert (packed.shape, packed.stored.name) == ((4, 64, 32), "bfloat16")
        assert found.tensors[LAYER_0 + "mlp.experts.down_proj"].shape == (4, 32, 32)
        assert found.tensors[LAYER_0 + "mlp.gate.weight"].shape == (4, 32)

    def test_the_rule_of_llama_3_is_found_from_its_table(self, tmp_path: Path) -> None:
        """`rope_freqs.weight` is no tensor of the model; the rule it was made by stands in the configuration."""
        tensors = {**TENSORS, "rope_freqs.weight": (F32, (4,))}
        metadata = changed(llama__rope__freq_base=500000.0)
        content = gguf_bytes(metadata, tensors)
        turns = [8192 * 500000.0 ** (-2 * i / 8) / 6.283185307179586 for i in range(4)]
        frequencies = [
            1.0 if turn > 4 else 8.0 if turn < 1 else 1 / ((1 - (turn - 1) / 3) / 8 + (turn - 1) / 3) for turn in turns
        ]
        sound = write_gguf(tmp_path / "m.gguf", content[:-32] + struct.pack("<4f", *frequencies) + b"\0" * 16)
        model = read_gguf(sound)
        assert not any("rope" in name for name in model.tensors)
        assert model.config["rope_scaling"] == {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        message = fails(tmp_path / "o.gguf", content[:-32] + struct.pack("<4f", 2, 3, 4, 5) + b"\0" * 16)
        assert "put the model's config.json beside it" in message

    @pytest.mark.parametrize("name", ["llama", "mixtral", "qwen2", "qwen3", "qwen3moe", "phi3"])
    def test_the_merged_model_loads_in_transformers(self, tmp_path: Path, name: str) -> None:
        """Of each architecture: the output has the tensors that transformers expects, in their shapes, and runs."""
        transformers = pytest.importorskip("transformers")
        import torch

        write_gguf(tmp_path / "m.gguf", gguf_bytes(*family(name)))
        (tmp_path / "r.yaml").write_text(f"merge_method: passthrough\nmodels:\n  - model: {tmp_path / 'm.gguf'}\n")
        mergeflow.run(mergeflow.load(tmp_path / "r.yaml"), tmp_path / "out")
        model, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
        assert not any(info.values())
        assert model(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 8)

    def test_numbers_are_written_short(self) -> None:
        """The fewest digits that are the same float32."""
        assert [shortest(float(np.float32(value))) for value in (1e-5, 1e-6, 0.1, 500000.0, 1.0)] == [
            1e-5,
            1e-6,
            0.1,
            500000.0,
            1.0,
        ]


class TestRefused:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (gguf_bytes(changed(general__architecture="mamba")), "of architecture 'mamba'; those that can be read are"),
            (gguf_bytes(changed(split__count=3)), "one of 3 parts"),
            (gguf_bytes(changed(general__type="adapter")), "holds a GGUF 'adapter'"),
            (
                gguf_bytes(tensors={**TENSORS, "blk.0.strange.weight": (F32, (4,))}),
                "'blk.0.strange.weight' has no place",
            ),
            (gguf_bytes(changed(llama__attention__head_count=5)), "not those of 5 heads"),
            (gguf_bytes(changed(llama__block_count=0)), "llama.block_count is 0"),
            (gguf_bytes({"general.architecture": "llama"}), "is missing"),
            (gguf_bytes(changed(llama__rope__scaling__type="longrope")), "'longrope'"),
        ],
    )
    def test_what_cannot_be_a_model_here(self, tmp_path: Path, content: bytes, message: str) -> None:
        """Foreign architectures, parts, adapters, tensors without a place and missing sizes: named, with the way out."""
        assert message in fails(tmp_path / "m.gguf", content)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is cut off"),
            (b"GGML" + bytes(40), "is no GGUF file"),
            (gguf_bytes(version=1), "of GGUF version 1"),
            (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
            (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "which no model has"),
            (b"GGUF" + struct.pack("<IQQ", 3, 0, 50_000), "more than it has room for"),
            (b"GGUF" + struct.pack("<IQQ", 3, 900_000, 0), "more than it has room for"),
            (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63) + bytes(40), "a key of"),
            (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IQ", 8, 2**62) + bytes(9), "cut off"),
            (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 8, 2**61) + bytes(9), "room"),
            (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQQ", 9, 8, 1, 2**64 - 1), "cut off"),
            (
                b"GGUF"
                + struct.pack("<IQQ", 3, 0, 1)
                + text("k")
                + struct.pack("<I", 9)
                + struct.pack("<IQ", 9, 1) * 6,
                "nested too deeply",
            ),
            (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IQ", 77, 0), "no such type"),
            (b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + (text("k") + struct.pack("<II", 4, 1)) * 2, "twice"),
            (gguf_bytes({**METADATA, "general.alignment": 33}), "a power of two"),
            (gguf_bytes(offsets={"blk.0.attn_q.weight": 0}), "overlaps"),
            (gguf_bytes(offsets={"output_norm.weight": 2**40}), "hole"),
            (gguf_bytes(offsets={"output_norm.weight": 7}), "no multiple of 32"),
            (gguf_bytes(tensors={"output_norm.weight": (19, (256, 256))}), "as IQ1_S, which this version cannot read"),
            (gguf_bytes(tensors={"output_norm.weight": (999, (32,))}), "as type 999"),
            (gguf_bytes(tensors={"output_norm.weight": (Q8_0, (32, 16))}), "not whole blocks of 32"),
            (gguf_bytes()[:-64], "beyond the end of the file"),
        ],
    )
    def test_what_is_damaged_or_lies(self, tmp_path: Path, content: bytes, message: str) -> None:
        """Every count, length, type and place is held against the file before it is believed."""
        assert message in fails(tmp_path / "m.gguf", content)

    def test_a_huge_shape_takes_no_memory(self, tmp_path: Path) -> None:
        """Lengths whose product overflows, and a list of a million items, are refused or passed over in little memory."""
        content = gguf_bytes({**METADATA, "x.list": list(range(100_000))}, {"a.weight": (F32, (1, 1, 1, 1))})
        huge = content.replace(struct.pack("<4Q", 1, 1, 1, 1), struct.pack("<4Q", 2**60, 2**60, 2**60, 2**60))
        path = write_gguf(tmp_path / "m.gguf", huge)
        tracemalloc.start()
        with pytest.raises(CheckpointError, match="which no tensor has"):
            read_gguf(path)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
        tracemalloc.stop()

    def test_a_header_without_end(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A header longer than any model's is not read to its end."""
        monkeypatch.setattr(gguf_header, "MAX_HEADER_BYTES", 200)
        assert "its header is longer than" in fails(tmp_path / "m.gguf", gguf_bytes())

    @settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def test_nothing_but_our_own_error_comes_out(self, tmp_path: Path, data: st.DataObject) -> None:
        """A file cut off anywhere, with bytes or whole words changed, opens or is refused; every place is in the file."""
        sound = bytearray(gguf_bytes())
        header = len(gguf_bytes(tensors={})) + 900
        for _ in range(data.draw(st.integers(0, 3))):
            place = data.draw(st.integers(0, header))
            word = data.draw(
                st.one_of(
                    st.binary(min_size=1, max_size=2),
                    st.sampled_from([2**63, 2**64 - 1, 2**32 - 1, 0, 9, 8]).map(lambda n: struct.pack("<Q", n)),
                )
            )
            sound[place : place + len(word)] = word
        content = bytes(sound[: data.draw(st.one_of(st.just(len(sound)), st.integers(0, len(sound))))])
        try:
            model = read_gguf(write_gguf(tmp_path / "m.gguf", content))
        except CheckpointError:
            return
        for tensor in model.tensors.values():
            for source in tensor.sources():
                assert source.nbytes == sum(segment.nbytes for segment in source.segments)
                assert all(0 <= part.offset <= part.offset + part.nbytes <= len(content) for part in source.segments)
        json.dumps(model.config, allow_nan=False)


def test_types_are_those_of_the_format() -> None:
    """Bytes of a block: as the format's documentation has them."""
    sizes = {kind.name: (kind.elements, kind.nbytes) for kind in TYPES.values()}
    assert sizes["Q8_0"] == (32, 2 + 32)
    assert sizes["Q4_K"] == (256, 2 + 2 + 12 + 128)
    assert sizes["Q6_K"] == (256, 128 + 64 + 16 + 2)
    assert (F32, F16, Q8_0) == (0, 1, 8)
