"""How the files beside this one were made: with PyPI's `gguf` (0.19.0), the format's own library.

    python make.py        needs `gguf`; no test runs this

blocks.npz          raw and expected blocks of every quantised format, as `gguf.quants.dequantize` has them
tiny.gguf           a llama of one layer, its tensors in eleven types
tiny.json           name in transformers -> sha256 of the tensor's float32 bytes, as transformers has it
"""

import hashlib
import json
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quants

HERE = Path(__file__).parent
FORMATS = {"Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34}
FORMATS |= {"Q2_K": 84, "Q3_K": 110, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210}
# Where the float16 scales lie in a block.
SCALES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2)}
SCALES |= {"Q6_K": (208,)}
HIDDEN, HEADS, KV_HEADS, VOCAB = 256, 4, 2, 32
random = np.random.default_rng(4)


def blocks(name: str, count: int) -> np.ndarray:
    """Random blocks with scales such as models have."""
    raw = random.integers(0, 256, (count, FORMATS[name]), dtype=np.uint8)
    for place in SCALES.get(name, (0,)):
        raw[:, place : place + 2] = random.normal(0, 0.01, (count, 1)).astype("<f2").view(np.uint8)
    return raw


def in_pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """The order of the original Llama, of rows in that of transformers."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def out_of_pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def main() -> None:
    found = {}
    for name in FORMATS:
        raw = blocks(name, 5)
        found[f"{name}.raw"] = raw
        found[f"{name}.expected"] = quants.dequantize(raw, GGMLQuantizationType[name])
    np.savez_compressed(HERE / "blocks.npz", **found)

    writer = GGUFWriter(HERE / "tiny.gguf", "llama")
    writer.add_name("tiny")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"token{number}" for number in range(VOCAB)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    digests = {}

    def add(role: str, name: str, kind: str, shape: tuple[int, ...], heads: int = 0) -> None:
        type_ = GGMLQuantizationType[kind]
        if kind in FORMATS:
            size, nbytes = (32, 256)[kind.endswith("K")], FORMATS[kind]
            data = blocks(kind, int(np.prod(shape)) // size).reshape(*shape[:-1], shape[-1] // size * nbytes)
        else:
            data = quants.quantize(random.normal(0, 0.1, shape).astype(np.float32), type_)
        writer.add_tensor(role, data, raw_dtype=type_)
        values = quants.dequantize(data, type_).astype(np.float32)
        values = out_of_pairs(values, heads) if heads else values
        assert not heads or (in_pairs(values, heads) == quants.dequantize(data, type_)).all()
        digests[name] = hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()

    head = HIDDEN // HEADS
    layer = "model.layers.0."
    add("token_embd.weight", "model.embed_tokens.weight", "Q8_0", (VOCAB, HIDDEN))
    add("blk.0.attn_norm.weight", layer + "input_layernorm.weight", "F32", (HIDDEN,))
    add("blk.0.attn_q.weight", layer + "self_attn.q_proj.weight", "Q4_K", (HIDDEN, HIDDEN), HEADS)
    add("blk.0.attn_k.weight", layer + "self_attn.k_proj.weight", "F16", (KV_HEADS * head, HIDDEN), KV_HEADS)
    add("blk.0.attn_v.weight", layer + "self_attn.v_proj.weight", "Q6_K", (KV_HEADS * head, HIDDEN))
    add("blk.0.attn_output.weight", layer + "self_attn.o_proj.weight", "Q4_0", (HIDDEN, HIDDEN))
    add("blk.0.ffn_norm.weight", layer + "post_attention_layernorm.weight", "F32", (HIDDEN,))
    add("blk.0.ffn_gate.weight", layer + "mlp.gate_proj.weight", "Q5_K", (HIDDEN, HIDDEN))
    add("blk.0.ffn_up.weight", layer + "mlp.up_proj.weight", "Q4_1", (HIDDEN, HIDDEN))
    add("blk.0.ffn_down.weight", layer + "mlp.down_proj.weight", "Q3_K", (HIDDEN, HIDDEN))
    add("output_norm.weight", "model.norm.weight", "F32", (HIDDEN,))
    add("output.weight", "lm_head.weight", "BF16", (VOCAB, HIDDEN))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (HERE / "tiny.json").write_text(json.dumps(digests, indent=1) + "\n")


if __name__ == "__main__":
    main()
