"""Tiny models of many architectures, made from transformers configurations: two or three layers, sixteen wide.

One row for each architecture: its configuration and class, and which stacks of layers its checkpoint has. Weights
are random with a fixed seed; norms are moved off one and biases off zero, so that a merge that skips them shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers as hf

VOCABULARY = 32
LAYERS = 3

# What most decoders call the same things.
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENCODER = {key: SMALL[key] for key in SMALL if key not in ("num_key_value_heads", "head_dim")}
MAMBA = {
    **{key: SMALL[key] for key in SMALL if key.endswith("token_id") or key in ("vocab_size", "hidden_size")},
    "num_hidden_layers": LAYERS,
    "state_size": 4,
    "time_step_rank": 2,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}

Inputs = Mapping[str, torch.Tensor]
# Architecture -> a folder with two models of it, `a` and `b`.
Made = Callable[[str], Path]


def _tokens() -> Inputs:
    return {"input_ids": torch.tensor([[5, 7, 11, 3]])}


def _pixels() -> Inputs:
    return {"pixel_values": torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8)}


@dataclass(frozen=True)
class Architecture:
    """A row of the table.

    Args:
        stacks: stack of the checkpoint -> where config.json counts its layers (``text_config.num_hidden_layers``);
            of models that we can put layers on: empty where there is no stack.
        inputs: of one forward pass.
    """

    name: str
    model: type[hf.PreTrainedModel]
    config: Callable[[], hf.PreTrainedConfig]
    stacks: Mapping[str, str]
    inputs: Callable[[], Inputs] = field(default=_tokens)


def save(architecture: Architecture, folder: Path, seed: int, **changes: Any) -> None:
    """Save a model with weights of its own for each seed; `changes` are made to its configuration."""
    torch.manual_seed(seed)
    config = architecture.config()
    for key, value in changes.items():
        setattr(config, key, value)
    model = architecture.model(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    model.save_pretrained(folder)


def _causal(kind: str, **changes: Any) -> Callable[[], hf.PreTrainedConfig]:
    """A configuration of the class `kind`; None as a value takes a field of `SMALL` away."""
    values = {key: value for key, value in (SMALL | changes).items() if value is not None}
    return lambda: getattr(hf, kind)(**values)


DECODER = {"model.layers": "num_hidden_layers"}
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 8}

DECODERS = (
    Architecture("llama", hf.LlamaForCausalLM, _causal("LlamaConfig", tie_word_embeddings=False), DECODER),
    Architecture("mistral", hf.MistralForCausalLM, _causal("MistralConfig"), DECODER),
    Architecture(
        "mixtral", hf.MixtralForCausalLM, _causal("MixtralConfig", num_local_experts=3, num_experts_per_tok=2), DECODER
    ),
    Architecture(
        "qwen2",
        hf.Qwen2ForCausalLM,
        _causal("Qwen2Config", head_dim=None, tie_word_embeddings=True, use_sliding_window=True, max_window_layers=1),
        DECODER,
    ),
    Architecture("qwen3", hf.Qwen3ForCausalLM, _causal("Qwen3Config", tie_word_embeddings=True), DECODER),
    Architecture(
        "qwen3_moe",
        hf.Qwen3MoeForCausalLM,
        _causal("Qwen3MoeConfig", num_experts=3, mlp_only_layers=[1], decoder_sparse_step=1, **MOE),
        DECODER,
    ),
    Architecture("gemma2", hf.Gemma2ForCausalLM, _causal("Gemma2Config", sliding_window=4), DECODER),
    Architecture(
        "gemma3_text",
        hf.Gemma3ForCausalLM,
        _causal("Gemma3TextConfig", sliding_window=4, sliding_window_pattern=2),
        DECODER,
    ),
    Architecture("phi3", hf.Phi3ForCausalLM, _causal("Phi3Config", head_dim=None), DECODER),
    Architecture(
        "gpt2",
        hf.GPT2LMHeadModel,
        lambda: hf.GPT2Config(
            vocab_size=VOCABULARY, n_embd=16, n_layer=LAYERS, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2
        ),
        {"transformer.h": "n_layer"},
    ),
    Architecture(
        "gpt2_bare",
        hf.GPT2Model,
        lambda: hf.GPT2Config(
            vocab_size=VOCABULARY, n_embd=16, n_layer=LAYERS, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2
        ),
        {"h": "n_layer"},
    ),
    Architecture(
        "gpt_neox",
        hf.GPTNeoXForCausalLM,
        _causal("GPTNeoXConfig", num_key_value_heads=None, head_dim=None, tie_word_embeddings=False),
        {"gpt_neox.layers": "num_hidden_layers"},
    ),
    Architecture(
        "falcon",
        hf.FalconForCausalLM,
        _causal("FalconConfig", num_key_value_heads=None, head_dim=None),
        {"transformer.h": "num_hidden_layers"},
    ),
    Architecture(
        "bloom",
        hf.BloomForCausalLM,
        lambda: hf.BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=LAYERS, n_head=2),
        {"transformer.h": "n_layer"},
    ),
    Architecture(
        "opt",
        hf.OPTForCausalLM,
        lambda: hf.OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            ffn_dim=24,
            num_hidden_layers=LAYERS,
            num_attention_heads=2,
            max_position_embeddings=32,
            word_embed_proj_dim=16,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
        {"model.decoder.layers": "num_hidden_layers"},
    ),
    Architecture("starcoder2", hf.Starcoder2ForCausalLM, _causal("Starcoder2Config", head_dim=None), DECODER),
    Architecture("cohere2", hf.Cohere2ForCausalLM, _causal("Cohere2Config", head_dim=8, sliding_window=4), DECODER),
    Architecture("olmo2", hf.Olmo2ForCausalLM, _causal("Olmo2Config", head_dim=None), DECODER),
    Architecture("granite", hf.GraniteForCausalLM, _causal("GraniteConfig", head_dim=None), DECODER),
    Architecture("glm4", hf.Glm4ForCausalLM, _causal("Glm4Config"), DECODER),
    Architecture(
        "deepseek_v3",
        hf.DeepseekV3ForCausalLM,
        _causal(
            "DeepseekV3Config",
            head_dim=None,
            num_key_value_heads=2,
            n_routed_experts=4,
            n_shared_experts=1,
            n_group=2,
            topk_group=1,
            first_k_dense_replace=1,
            kv_lora_rank=8,
            q_lora_rank=8,
            qk_rope_head_dim=4,
            qk_nope_head_dim=4,
            v_head_dim=8,
            **MOE,
        ),
        DECODER,
    ),
    Architecture(
        "smollm3",
        hf.SmolLM3ForCausalLM,
        _causal("SmolLM3Config", head_dim=None, no_rope_layers=[1, 0, 1]),
        DECODER,
    ),
    Architecture(
        "mamba",
        hf.MambaForCausalLM,
        lambda: hf.MambaConfig(**MAMBA),
        {"backbone.layers": "num_hidden_layers"},
    ),
    Architecture(
        "falcon_mamba",
        hf.FalconMambaForCausalLM,
        lambda: hf.FalconMambaConfig(**MAMBA),
        {"backbone.layers": "num_hidden_layers"},
    ),
)

ENCODERS = (
    Architecture("bert", hf.BertModel, lambda: hf.BertConfig(**ENCODER), {"encoder.layer": "num_hidden_layers"}),
    Architecture(
        "bert_masked_lm",
        hf.BertForMaskedLM,
        lambda: hf.BertConfig(**ENCODER),
        {"bert.encoder.layer": "num_hidden_layers"},
    ),
    Architecture(
        "roberta",
        hf.RobertaForMaskedLM,
        lambda: hf.RobertaConfig(**ENCODER),
        {"roberta.encoder.layer": "num_hidden_layers"},
    ),
    Architecture(
        "distilbert",
        hf.DistilBertForSequenceClassification,
        lambda: hf.DistilBertConfig(
            vocab_size=VOCABULARY, dim=16, hidden_dim=24, n_layers=LAYERS, n_heads=2, max_position_embeddings=32
        ),
        {"distilbert.transformer.layer": "n_layers"},
    ),
    Architecture(
        "vit",
        hf.ViTForImageClassification,
        lambda: hf.ViTConfig(**VISION),
        {"vit.encoder.layer": "num_hidden_layers"},
        _pixels,
    ),
)

PAIRS = (
    Architecture(
        "t5",
        hf.T5ForConditionalGeneration,
        lambda: hf.T5Config(
            vocab_size=VOCABULARY,
            d_model=16,
            d_kv=8,
            d_ff=24,
            num_layers=2,
            num_decoder_layers=LAYERS,
            num_heads=2,
            decoder_start_token_id=0,
        ),
        {"encoder.block": "num_layers", "decoder.block": "num_decoder_layers"},
        lambda: {**_tokens(), "decoder_input_ids": torch.tensor([[0, 4]])},
    ),
    Architecture(
        "whisper",
        hf.WhisperForConditionalGeneration,
        lambda: hf.WhisperConfig(
            vocab_size=VOCABULARY,
            d_model=16,
            encoder_layers=2,
            decoder_layers=LAYERS,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=24,
            decoder_ffn_dim=24,
            num_mel_bins=4,
            max_source_positions=8,
            max_target_positions=8,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
            suppress_tokens=None,
            begin_suppress_tokens=None,
        ),
        {"model.encoder.layers": "encoder_layers", "model.decoder.layers": "decoder_layers"},
        lambda: {
            "input_features": torch.linspace(-1, 1, 64).reshape(1, 4, 16),
            "decoder_input_ids": torch.tensor([[1, 4]]),
        },
    ),
    Architecture(
        "clip",
        hf.CLIPModel,
        lambda: hf.CLIPConfig(text_config=ENCODER, vision_config=VISION | {"num_hidden_layers": 2}, projection_dim=8),
        {
            "text_model.encoder.layers": "text_config.num_hidden_layers",
            "vision_model.encoder.layers": "vision_config.num_hidden_layers",
        },
        lambda: {**_tokens(), **_pixels()},
    ),
    Architecture(
        "llava",
        hf.LlavaForConditionalGeneration,
        lambda: hf.LlavaConfig(
            text_config=hf.LlamaConfig(**SMALL),
            vision_config=hf.CLIPVisionConfig(**VISION),
            image_token_index=31,
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
        ),
        {
            "language_model.model.layers": "text_config.num_hidden_layers",
            "vision_tower.encoder.layers": "vision_config.num_hidden_layers",
        },
        lambda: {"input_ids": torch.tensor([[5, 31, 31, 31, 31, 3]]), **_pixels()},
    ),
    Architecture(
        "qwen2_5_vl",
        hf.Qwen2_5_VLForConditionalGeneration,
        lambda: hf.Qwen2_5_VLConfig(
            text_config=SMALL
            | {
                "head_dim": 8,
                "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0},
            },
            vision_config={
                "depth": LAYERS,
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_heads": 2,
                "patch_size": 4,
                "out_hidden_size": 16,
                "spatial_merge_size": 2,
                "fullatt_block_indexes": [1],
                "window_size": 16,
                "temporal_patch_size": 2,
            },
            image_token_id=31,
            video_token_id=30,
            vision_start_token_id=29,
            vision_end_token_id=28,
        ),
        {"model.layers": "text_config.num_hidden_layers", "visual.blocks": "vision_config.depth"},
        lambda: {
            "input_ids": torch.tensor([[5, 29, 31, 28, 3]]),
            "pixel_values": torch.linspace(-1, 1, 4 * 96).reshape(4, 96),
            "image_grid_thw": torch.tensor([[1, 2, 2]]),
        },
    ),
    Architecture(
        "gemma3",
        hf.Gemma3ForConditionalGeneration,
        lambda: hf.Gemma3Config(
            text_config=hf.Gemma3TextConfig(**SMALL, sliding_window=4),
            vision_config=hf.SiglipVisionConfig(**VISION, vision_use_head=False),
            mm_tokens_per_image=4,
            image_token_index=31,
            boi_token_index=29,
            eoi_token_index=28,
        ),
        {
            "language_model.model.layers": "text_config.num_hidden_layers",
            "vision_tower.encoder.layers": "vision_config.num_hidden_layers",
        },
        lambda: {"input_ids": torch.tensor([[5, 29, 31, 31, 31, 31, 28, 3]]), **_pixels()},
    ),
)

ARCHITECTURES = {row.name: row for row in (*DECODERS, *ENCODERS, *PAIRS)}
