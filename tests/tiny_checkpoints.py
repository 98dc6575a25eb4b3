"""Small checkpoints made for a test: Llama-shaped names, any dtype, safetensors files like everyone's."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

HIDDEN = 16


def llama_tensors(
    seed: int, layers: int = 2, dtype: torch.dtype = torch.float32, vocab: int = 24
) -> dict[str, torch.Tensor]:
    """Random tensors with the names and roles of a small Llama."""
    generator = torch.Generator().manual_seed(seed)

    def rnd(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    tensors = {"model.embed_tokens.weight": rnd(vocab, HIDDEN), "lm_head.weight": rnd(vocab, HIDDEN)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        tensors |= {
            prefix + "self_attn.q_proj.weight": rnd(HIDDEN, HIDDEN),
            prefix + "mlp.down_proj.weight": rnd(HIDDEN, 2 * HIDDEN),
            prefix + "input_layernorm.weight": rnd(HIDDEN),
        }
    return tensors | {"model.norm.weight": rnd(HIDDEN)}


def write_model(
    folder: Path, tensors: dict[str, torch.Tensor], *, config: dict[str, object] | None = None, shards: int = 1
) -> Path:
    """Write tensors as a model folder with a config.json, in one file or in several with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    stated = (
        config if config is not None else {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": dtype}
    )
    (folder / "config.json").write_text(json.dumps(stated))
    names = list(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        mine = names[number::shards]
        save_file({name: tensors[name] for name in mine}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(mine, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def llama(folder: Path, seed: int, layers: int = 2, dtype: torch.dtype = torch.float32, shards: int = 1) -> Path:
    """A small Llama of its own seed in `folder`."""
    return write_model(folder, llama_tensors(seed, layers, dtype), shards=shards)


def read_model(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a model folder, read by the safetensors library."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def raw_bytes(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, byte by byte."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
