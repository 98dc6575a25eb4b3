"""The config.json of a GGUF file's model, from its metadata: what transformers needs to load the merged weights.

Numbers of the metadata are float32; they are written with the fewest digits that give the same float32 again (1e-05,
and not 9.999999747378752e-06). What the metadata does not say is what the architecture's models have in common.

Llama 3.1 stretches its rotary embeddings by a rule of its own, of which GGUF keeps only the result: how much slower
each frequency turns (`rope_freqs.weight`). The rule's factor is the largest of these; its other three numbers are the
same in all of Meta's models, and are believed when they give the same table again.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence

from mergeflow.dtypes import DType
from mergeflow.errors import CheckpointError
from mergeflow.models.gguf_header import GgufHeader
from mergeflow.models.gguf_names import Architecture

MOST = 2**31 - 1
# low_freq_factor, high_freq_factor, original_max_position_embeddings of Llama 3.1, 3.2 and 3.3
_LLAMA3 = (1.0, 4.0, 8192)


class Metadata:
    """The metadata of one model, asked for by keys without the architecture in front.

    Raises (from every method):
        CheckpointError: the value is not what it must be.
    """

    def __init__(self, header: GgufHeader) -> None:
        self._header = header
        self.prefix = str(header.metadata.get("general.architecture"))

    def has(self, key: str) -> bool:
        return f"{self.prefix}.{key}" in self._header.metadata

    def count(self, key: str, default: int | None = None) -> int:
        """A positive number; of a list with one for each layer, the one that all have."""
        value = self._header.metadata.get(f"{self.prefix}.{key}", default)
        if isinstance(value, tuple) and len(set(value)) == 1:
            value = value[0]
        if type(value) is not int or not 0 < value <= MOST:
            raise self._wrong(key, value, "one positive whole number")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A positive number, as the float32 it is says it shortest."""
        value = self._header.metadata.get(f"{self.prefix}.{key}", default)
        if type(value) not in (int, float) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self._wrong(key, value, "a positive number")
        return shortest(float(value))

    def text(self, key: str, default: str) -> str:
        value = self._header.metadata.get(f"{self.prefix}.{key}", default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a text")
        return value

    def token(self, name: str) -> int | None:
        """The id of a special token (``bos``), when there is one."""
        value = self._header.metadata.get(f"tokenizer.ggml.{name}_token_id")
        return value if type(value) is int and 0 <= value <= MOST else None

    def _wrong(self, key: str, value: object, expected: str) -> CheckpointError:
        found = "is missing" if value is None else f"is {value!r:.60}"
        return CheckpointError(f"{self._header.file.path}: {self.prefix}.{key} {found}; {expected} was expected")


def gguf_config(
    header: GgufHeader, family: Architecture, stored: DType, frequencies: Sequence[float] | None
) -> Mapping[str, object]:
    """The configuration of a model.

    Args:
        stored: what its matrices are written in when nobody says otherwise.
        frequencies: what `rope_freqs.weight` holds, when it is there.

    Raises:
        CheckpointError: the metadata lacks what the model needs, or contradicts itself.
    """
    metadata = Metadata(header)
    hidden, heads = metadata.count("embedding_length"), metadata.count("attention.head_count")
    config: dict[str, object] = {
        "architectures": [family.model_class],
        "model_type": family.model_type,
        "hidden_size": hidden,
        "intermediate_size": metadata.count("feed_forward_length"),
        "num_hidden_layers": metadata.count("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.count("attention.head_count_kv", heads),
        "head_dim": head_size(metadata),
        "hidden_act": "silu",
        "rms_norm_eps": metadata.real("attention.layer_norm_rms_epsilon"),
        "rope_theta": metadata.real("rope.freq_base", 10000.0),
        "max_position_embeddings": metadata.count("context_length"),
        "vocab_size": _rows(header, "token_embd.weight", metadata),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "dtype": stored.name,
        **_biases(header, family),
        **_experts(metadata, family),
        **_window(metadata, family),
    }
    scaling = _scaling(metadata, frequencies, header)
    config |= {"rope_scaling": scaling} if scaling else {}
    config |= {f"{name}_token_id": metadata.token(name) for name in ("bos", "eos")}
    padding = metadata.token("padding")
    return config if padding is None else {**config, "pad_token_id": padding}


def head_size(metadata: Metadata) -> int:
    """How many rows of the query matrix belong to one head."""
    if metadata.has("attention.key_length"):
        return metadata.count("attention.key_length")
    return max(1, metadata.count("embedding_length") // metadata.count("attention.head_count"))


def shortest(value: float) -> float:
    """The number with the fewest digits that is the same float32."""
    try:
        wanted = struct.pack("<f", value)
    except OverflowError:  # no float32: the metadata had a float64
        return value
    digits = (float(f"{value:.{count}g}") for count in range(1, 10))
    return next((short for short in digits if _packs_to(short, wanted)), value)


def _packs_to(value: float, wanted: bytes) -> bool:
    try:
        return struct.pack("<f", value) == wanted
    except OverflowError:
        return False


def _rows(header: GgufHeader, name: str, metadata: Metadata) -> int:
    found = header.tensors.get(name)
    return found.shape[0] if found is not None else metadata.count("vocab_size")


def _biases(header: GgufHeader, family: Architecture) -> Mapping[str, object]:
    """Whether matrices have biases, where that is not the architecture's but the model's own choice."""
    if family.model_type == "llama":
        has_bias = "blk.0.attn_q.bias" in header.tensors
        return {"attention_bias": has_bias, "mlp_bias": "blk.0.ffn_up.bias" in header.tensors}
    return {"attention_bias": False} if family.model_type.startswith("qwen3") else {}


def _experts(metadata: Metadata, family: Architecture) -> Mapping[str, object]:
    if not family.experts:
        return {}
    count, used = metadata.count("expert_count"), metadata.count("expert_used_count")
    if family.model_type == "mixtral":
        return {"num_local_experts": count, "num_experts_per_tok": used}
    return {
        "num_experts": count,
        "num_experts_per_tok": used,
        "moe_intermediate_size": metadata.count("expert_feed_forward_length"),
        "decoder_sparse_step": 1,
        "norm_topk_prob": True,
        "mlp_only_layers": [],
    }


def _window(metadata: Metadata, family: Architecture) -> Mapping[str, object]:
    if not metadata.has("attention.sliding_window") or family.model_type not in ("mistral", "mixtral", "phi3"):
        return {"sliding_window": None} if family.model_type == "mistral" else {}
    return {"sliding_window": metadata.count("attention.sliding_window")}


def _scaling(
    metadata: Metadata, frequencies: Sequence[float] | None, header: GgufHeader
) -> Mapping[str, object] | None:
    """How positions are stretched; None when they are not."""
    if frequencies is not None:
        return _llama3(metadata, frequencies, header)
    kind = metadata.text("rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise CheckpointError(
            f"{header.file.path}: stretches its positions by {kind!r:.40}, which cannot be told to transformers from "
            "its metadata alone; put the model's config.json beside it"
        )
    scaling: dict[str, object] = {"rope_type": kind, "factor": metadata.real("rope.scaling.factor")}
    if metadata.has("rope.scaling.original_context_length"):
        scaling["original_max_position_embeddings"] = metadata.count("rope.scaling.original_context_length")
    return scaling


def _llama3(metadata: Metadata, frequencies: Sequence[float], header: GgufHeader) -> Mapping[str, object]:
    factor = shortest(max(frequencies, default=1.0))
    base, size = metadata.real("rope.freq_base", 10000.0), head_size(metadata)
    expected = [_slower(base ** (-2 * i / size), factor) for i in range(size // 2)]
    if len(expected) != len(frequencies) or not all(map(_is_close, expected, frequencies)):
        raise CheckpointError(
            f"{header.file.path}: its rope_freqs.weight is not that of a Llama 3.1, and what it is of is not in its "
            "metadata; put the model's config.json beside it"
        )
    low, high, original = _LLAMA3
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _slower(frequency: float, factor: float) -> float:
    """How many times slower a frequency turns: 1 for high ones, `factor` for low ones, between them in between."""
    low, high, original = _LLAMA3
    turns = original * frequency / (2 * math.pi)
    if turns > high:
        return 1.0
    if turns < low:
        return factor
    smooth = (turns - low) / (high - low)
    return 1.0 / ((1.0 - smooth) / factor + smooth)


def _is_close(expected: float, found: float) -> bool:
    return math.isclose(expected, found, rel_tol=1e-3)
