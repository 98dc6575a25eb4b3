"""GGUF's names of a model's tensors, and transformers' names of the same.

GGUF knows a tensor by its role, the same in every architecture (``blk.3.ffn_down.weight``); what transformers calls it
depends on the architecture, for the members of the Llama family only in a few places. A tensor whose role is not in the
table is an error, never dropped: a model without it would be another one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

# role, without `.weight` or `.bias` -> name, without them
_MODEL: Mapping[str, str] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER: Mapping[str, str] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HEAD_NORMS: Mapping[str, str] = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}

_IN_LAYER = re.compile(r"blk\.(?P<layer>0|[1-9][0-9]{0,5})\.(?P<role>[a-z_0-9]+)\.(?P<kind>weight|bias)")
_IN_MODEL = re.compile(r"(?P<role>[a-z_0-9]+)\.(?P<kind>weight|bias)")

# Tables of rotary embeddings: what they hold is in the configuration.
FREQUENCIES = "rope_freqs.weight"


@dataclass(frozen=True, slots=True)
class Architecture:
    """A member of the family, as GGUF's `general.architecture` calls it.

    Args:
        model_type: transformers' word for it.
        model_class: the class of the model in transformers.
        layer: role -> name inside a layer.
        experts: role -> name of an expert's matrix inside the layer, ``{}`` its number.
        rotary: whether rows of queries and keys stand in pairs, as the original Llama has them.
    """

    model_type: str
    model_class: str
    layer: Mapping[str, str]
    experts: Mapping[str, str] = field(default_factory=dict)
    rotary: bool = False


_QWEN_EXPERTS = {f"ffn_{part}_exps": f"mlp.experts.{{}}.{part}_proj" for part in ("gate", "up", "down")}
_MIXTRAL_EXPERTS = {
    f"ffn_{part}_exps": f"block_sparse_moe.experts.{{}}.{name}"
    for part, name in (("gate", "w1"), ("up", "w3"), ("down", "w2"))
}
_MIXTRAL = Architecture(
    "mixtral",
    "MixtralForCausalLM",
    {**_LAYER, "ffn_gate_inp": "block_sparse_moe.gate"},
    _MIXTRAL_EXPERTS,
    rotary=True,
)
_PHI3_LAYER = {**_LAYER, "attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", "LlamaForCausalLM", _LAYER, rotary=True),
    "mistral": Architecture("mistral", "MistralForCausalLM", _LAYER, rotary=True),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", _LAYER),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", {**_LAYER, **_HEAD_NORMS}),
    "qwen3moe": Architecture(
        "qwen3_moe", "Qwen3MoeForCausalLM", {**_LAYER, **_HEAD_NORMS, "ffn_gate_inp": "mlp.gate"}, _QWEN_EXPERTS
    ),
    "phi3": Architecture("phi3", "Phi3ForCausalLM", _PHI3_LAYER),
}


def architecture(name: object, *, experts: bool) -> Architecture | None:
    """The architecture that GGUF calls `name`; None for one that is not in the table.

    A Mixtral is called ``llama`` too: with `experts`.
    """
    if name == "llama" and experts:
        return _MIXTRAL
    return ARCHITECTURES.get(name) if isinstance(name, str) else None


def tensor_name(role: str, family: Architecture) -> str | None:
    """transformers' name of the tensor that GGUF calls `role`; None where the architecture has no such tensor.

    Of all experts' matrices in one, the name has ``{}`` where the expert's number stands.
    """
    in_layer = _IN_LAYER.fullmatch(role)
    if in_layer:
        name = {**family.layer, **family.experts}.get(in_layer["role"])
        return f"model.layers.{in_layer['layer']}.{name}.{in_layer['kind']}" if name else None
    in_model = _IN_MODEL.fullmatch(role)
    name = _MODEL.get(in_model["role"]) if in_model else None
    return f"{name}.{in_model['kind']}" if name and in_model else None


def is_rotary(role: str) -> bool:
    """Whether a tensor's rows are turned by rotary embeddings: those of queries and keys."""
    in_layer = _IN_LAYER.fullmatch(role)
    return in_layer is not None and in_layer["role"] in ("attn_q", "attn_k")
