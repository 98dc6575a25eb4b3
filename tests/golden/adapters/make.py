"""Writes the golden files beside it: tiny models, adapters that PEFT saved, and what PEFT makes of the two.

    python tests/golden/adapters/make.py          needs peft and transformers; the tests that read the files need neither

Each case is a folder: `adapter/` as PEFT saved it (its numbers replaced by random ones, so that nothing is zero) and
`merged.safetensors`, the weights after `merge_and_unload` in float64, rounded once. `bases/` has the models.
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent
LINEAR = ["q_proj", "v_proj", "down_proj"]
REGEX = r"layers\.(0|2)\.mlp\.\w+_proj"
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {"r": 4, "lora_alpha": 8, "target_modules": LINEAR}),
    "rslora": ("llama", {"r": 4, "lora_alpha": 8, "target_modules": LINEAR, "use_rslora": True}),
    "patterns": (
        "llama",
        {
            "r": 4,
            "target_modules": [*LINEAR, "up_proj"],
            "rank_pattern": {"layers.1.self_attn.q_proj": 2, REGEX: 3, "^model.layers.1.mlp.down_proj": 5},
            "alpha_pattern": {"v_proj": 16, "up_proj": 2, "layers.0.mlp.up_proj": 3},
        },
    ),
    "bias_all": ("llama", {"r": 2, "target_modules": LINEAR, "bias": "all"}),
    "bias_lora_only": ("llama", {"r": 2, "target_modules": LINEAR, "bias": "lora_only"}),
    "lora_bias": ("llama", {"r": 2, "target_modules": ["q_proj", "v_proj"], "lora_bias": True}),
    "modules_to_save": ("llama", {"r": 2, "target_modules": LINEAR, "modules_to_save": ["lm_head", "norm"]}),
    "embeddings": ("llama", {"r": 2, "target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "dora": ("llama", {"r": 2, "target_modules": LINEAR, "use_dora": True}),
    "dora_embeddings": ("llama", {"r": 2, "target_modules": ["embed_tokens"], "use_dora": True}),
    "gpt2": ("gpt2", {"r": 2, "target_modules": ["c_attn", "c_proj", "c_fc", "wte"], "fan_in_fan_out": True}),
    "gpt2_dora": ("gpt2", {"r": 2, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_dora": True}),
    "tied": ("tied", {"r": 2, "target_modules": ["embed_tokens", "q_proj"]}),
}


def base_model(name: str) -> torch.nn.Module:
    """A model of some ten thousand numbers."""
    torch.manual_seed(1)
    if name == "gpt2":
        config = GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=4, bos_token_id=1, eos_token_id=2)
        model: torch.nn.Module = GPT2LMHeadModel(config)
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=20,
                hidden_size=8,
                intermediate_size=12,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                attention_bias=True,
                tie_word_embeddings=name == "tied",
            )
        )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model


def make(case: str) -> None:
    name, fields = CASES[case]
    folder = HERE / case
    shutil.rmtree(folder, ignore_errors=True)
    model = get_peft_model(base_model(name), LoraConfig(**fields))
    model.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink(missing_ok=True)
    weights = folder / "adapter" / "adapter_model.safetensors"
    tensors = load_file(weights)
    for key, tensor in tensors.items():
        tensors[key] = tensor if key.endswith("base_layer.weight") else torch.randn_like(tensor) / 4
    save_file(tensors, weights, {"format": "pt"})
    loaded = PeftModel.from_pretrained(base_model(name).double(), folder / "adapter", autocast_adapter_dtype=False)
    loaded = loaded.double()
    merged = loaded.merge_and_unload()
    state = {key: tensor.contiguous() for key, tensor in merged.state_dict().items()}
    if name in ("gpt2", "tied"):
        del state["lm_head.weight"]
    changed = {
        key: t.float().clone() for key, t in state.items() if not equal(t, base_model(name).state_dict().get(key))
    }
    save_file(changed, folder / "merged.safetensors")
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


def equal(tensor: torch.Tensor, other: torch.Tensor | None) -> bool:
    return other is not None and torch.equal(tensor, other.double())


def main() -> None:
    warnings.simplefilter("ignore")
    shutil.rmtree(HERE / "bases", ignore_errors=True)
    for name in ("llama", "gpt2", "tied"):
        base_model(name).save_pretrained(HERE / "bases" / name)
        (HERE / "bases" / name / "generation_config.json").unlink(missing_ok=True)
    for case in CASES:
        make(case)


if __name__ == "__main__":
    main()
