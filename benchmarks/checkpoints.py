"""Llama-shaped checkpoints of any size, the same bytes on every machine, without a download.

What matters to a merge's cost is here as in real models: names and shapes (those of TinyLlama, 1.1B parameters, unless
told otherwise), bfloat16, weights of realistic spread, and fine-tunes that differ from their base by less than one
unit in the last place of bfloat16 at most elements, so that many deltas are exactly zero.

    base     w = bf16(0.02 n)                     n standard normal; norms lie around 1
    tune-k   bf16(w + delta n_k)                  delta: FINE_TUNE_SPREAD

Each tensor is drawn from a generator of its own, seeded by its name, and streamed to the file block by block.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

NAMES = ("base", "tune-1", "tune-2", "tune-3")

WEIGHT_SPREAD = 0.02
NORM_SPREAD = 0.05
# At 0.02, neighbouring bfloat16 numbers are 1.2e-4 apart: about half of all elements stay as they were.
FINE_TUNE_SPREAD = 5e-5

BLOCK_ELEMENTS = 1 << 22


@dataclass(frozen=True, slots=True)
class Shape:
    """The dimensions of a Llama. The defaults are TinyLlama's."""

    layers: int = 22
    hidden: int = 2048
    intermediate: int = 5632
    heads: int = 32
    kv_heads: int = 4
    vocabulary: int = 32000

    @property
    def kv_width(self) -> int:
        return self.hidden // self.heads * self.kv_heads

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape, by name, in the order of the file."""
        attention = {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (self.kv_width, self.hidden),
            "self_attn.v_proj": (self.kv_width, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
        }
        mlp = {
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }
        norms = {"input_layernorm": (self.hidden,), "post_attention_layernorm": (self.hidden,)}
        layer: dict[str, tuple[int, ...]] = {**attention, **mlp, **norms}

        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        for index in range(self.layers):
            found.update({f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()})
        return {**found, "model.norm.weight": (self.hidden,), "lm_head.weight": (self.vocabulary, self.hidden)}

    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.tensors().values())

    def config(self) -> dict[str, object]:
        """What transformers wants to know of such a model."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-05,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }


SIZES: Mapping[str, Shape] = {
    "1.1b": Shape(),
    "tiny": Shape(layers=2, hidden=256, intermediate=704, heads=4, kv_heads=2, vocabulary=1000),
}


def make_checkpoints(folder: Path, shape: Shape) -> dict[str, Path]:
    """The four models in `folder`, made unless they are there. Returns their folders by name."""
    for name in NAMES:
        if not (folder / name).exists():
            write_checkpoint(folder / name, shape, name)
    return {name: folder / name for name in NAMES}


def require_room(folder: Path, shape: Shape) -> None:
    """Stop before the disk is full: the models that are missing, and as many bytes again for outputs and caches."""
    missing = [name for name in NAMES if not (folder / name).exists()]
    needed = (len(missing) + len(NAMES)) * 2 * shape.parameters()
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SystemExit(f"{folder}: {needed / 1e9:.0f} GB are needed, {free / 1e9:.0f} GB are free")


def write_checkpoint(folder: Path, shape: Shape, name: str) -> None:
    """Write the model `name` (one of NAMES) to `folder`, which appears only when it is complete."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with (partial / "model.safetensors").open("wb") as file:
        file.write(header(shape.tensors()))
        for tensor, dimensions in shape.tensors().items():
            for block in blocks(tensor, math.prod(dimensions), name):
                file.write(block.tobytes())
    (partial / "config.json").write_text(json.dumps(shape.config(), indent=2) + "\n")
    partial.rename(folder)


def header(tensors: Mapping[str, tuple[int, ...]]) -> bytes:
    """The first bytes of a safetensors file of bfloat16 tensors that follow each other in the given order."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        begin, end = end, end + 2 * math.prod(shape)
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)  # the format wants the data to begin at a multiple of eight
    return len(text).to_bytes(8, "little") + text


def blocks(tensor: str, size: int, name: str) -> Iterator[NDArray[np.generic]]:
    """The elements of one tensor of the model `name`, as bfloat16, in runs of BLOCK_ELEMENTS."""
    base = generator(tensor, NAMES[0])
    tune = None if name == NAMES[0] else generator(tensor, name)
    norm = "norm" in tensor
    for start in range(0, size, BLOCK_ELEMENTS):
        count = min(BLOCK_ELEMENTS, size - start)
        values = base.standard_normal(count, dtype=np.float32)
        values *= np.float32(NORM_SPREAD if norm else WEIGHT_SPREAD)
        values += np.float32(norm)
        stored = values.astype(ml_dtypes.bfloat16)
        if tune is not None:
            change = tune.standard_normal(count, dtype=np.float32)
            change *= np.float32(FINE_TUNE_SPREAD)
            stored = (stored.astype(np.float32) + change).astype(ml_dtypes.bfloat16)
        yield stored


def generator(tensor: str, name: str) -> np.random.Generator:
    """The random numbers of one tensor of one model; the same everywhere, whatever else is drawn."""
    seed = hashlib.sha256(f"{name}/{tensor}".encode()).digest()
    return np.random.Generator(np.random.SFC64(list(seed)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="1.1b")
    parser.add_argument("--layers", type=int, help="another number of layers")
    arguments = parser.parse_args()
    shape = with_layers(SIZES[arguments.size], arguments.layers)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    require_room(arguments.folder, shape)
    for name, folder in make_checkpoints(arguments.folder, shape).items():
        print(f"{name}: {folder}")


def with_layers(shape: Shape, layers: int | None) -> Shape:
    """The same shape, with another number of layers unless that is None."""
    return shape if layers is None else replace(shape, layers=layers)


if __name__ == "__main__":
    main()
