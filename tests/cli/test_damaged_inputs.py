"""Damaged and hostile models, of every kind that is read: one clear line, exit code 1, and nothing written."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import everything, mergeflow, write
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.usefixtures("workplace")

WEIGHTS = "model.safetensors"
MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}


def linear(model: str) -> str:
    return write(f"""
        merge_method: linear
        models:
        - {{model: {model}, parameters: {{weight: 0.5}}}}
        - {{model: b, parameters: {{weight: 0.5}}}}
    """)


def pickled(folder: Path) -> bytes:
    path = folder / "pytorch_model.bin"
    torch.save(load_file(folder / WEIGHTS), path)
    (folder / WEIGHTS).unlink()
    return path.read_bytes()


def cut_off_pickle(folder: Path) -> None:
    content = pickled(folder)
    (folder / "pytorch_model.bin").write_bytes(content[: len(content) // 2])


def no_pickle(folder: Path) -> None:
    pickled(folder)
    (folder / "pytorch_model.bin").write_bytes(b"junk" * 100)


def cut_off_safetensors(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-10])


def huge_gguf(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "model.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1 << 40, 5))


def index_outside(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "x.safetensors")
    (folder / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}')


def deep_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)


def cut_off_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"a": ')


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a pickle that is cut off": (cut_off_pickle, "cut off"),
    "no pickle at all": (no_pickle, "torch.save did not write it"),
    "safetensors that are cut off": (cut_off_safetensors, "beyond the end of the file"),
    "a GGUF header with absurd counts": (huge_gguf, "which no model has"),
    "an index that names a file elsewhere": (index_outside, "points outside the folder"),
    "a configuration without a bottom": (deep_config, "nested too deeply"),
    "a configuration that is cut off": (cut_off_config, "not valid JSON"),
}


def assert_refused(workplace: Path, recipe: str, *words: str) -> None:
    """The run ends with one line that has `words` in it, and nothing on the disk has changed."""
    before = everything(workplace)
    done = mergeflow("run", recipe, "out", "--no-cache", "--quiet")
    assert done.code == 1
    assert len(done.lines) == 1
    for word in words:
        assert word in done.err
    assert everything(workplace) == before


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model(workplace: Path, damage: str) -> None:
    """The message names the file of the model and what is wrong with it."""
    act, words = DAMAGES[damage]
    shutil.copytree((workplace / "a").resolve(), workplace / "damaged")
    act(workplace / "damaged")
    assert_refused(workplace, linear("damaged"), "recipe.yaml:3", words)


ADAPTERS: dict[str, tuple[object, bool, str]] = {
    "swapped matrices": (LORA, True, "has matrices of rank"),
    "a configuration that is none": ("nope", False, "JSON object was expected"),
    "another kind of adapter": ({"peft_type": "IA3"}, False, "is not read"),
    "an alpha that is a text": ({**LORA, "lora_alpha": "x"}, False, "must be a finite number"),
    "a rank of nothing": ({**LORA, "r": 0}, False, "must be a whole number from 1 on"),
}


@pytest.mark.parametrize("damage", ADAPTERS)
def test_a_damaged_adapter(workplace: Path, damage: str) -> None:
    """The message names the adapter and the field that is wrong."""
    config, is_swapped, words = ADAPTERS[damage]
    weight = load_file(workplace / "a" / WEIGHTS)["model.layers.0.self_attn.q_proj.weight"]
    first, second = torch.ones(2, weight.shape[1]), torch.ones(weight.shape[0], 2)
    a, b = (second, first) if is_swapped else (first, second)
    (workplace / "adapter").mkdir()
    save_file({f"{MODULE}.lora_A.weight": a, f"{MODULE}.lora_B.weight": b}, "adapter/adapter_model.safetensors")
    (workplace / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    assert_refused(workplace, linear("a+adapter"), "adapter", words)
