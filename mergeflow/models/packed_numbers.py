"""Weights packed into numbers that cannot be merged: int4 of GPTQ or AWQ, bitsandbytes, mxfp4, ... : refused.

What such a file holds are not the model's numbers but codes for them, and each method packs them in its own way, most
in ways that depend on the kernel they were made for. Averaging them as if they were numbers gives garbage, and what
could be unpacked would be far from the weights it was made from. Those are what to merge.

A model says how it was quantised in its config.json (`quantization_config.quant_method`); its tensors' names tell too,
also when the configuration is missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from mergeflow.errors import CheckpointError
from mergeflow.models.config_parts import QUANTISERS, nested_configs
from mergeflow.models.records import Checkpoint

# What these methods store is read: 8-bit numbers with scales (`block_scales`).
READ = frozenset({"fp8", "fbgemm_fp8", "compressed-tensors", "modelopt"})
_WRITTEN: Mapping[str, str] = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "hqq": "HQQ",
    "aqlm": "AQLM",
    "mxfp4": "MXFP4",
    "auto-round": "AutoRound",
}
# What tells a method by the name of a tensor. The first that fits decides.
_NAMES = (
    (re.compile(r".+\.(qweight|qzeros|g_idx)"), "GPTQ or AWQ"),
    (re.compile(r".+\.(absmax|quant_map|nested_absmax|nested_quant_map|SCB)|.+\.quant_state\..+"), "bitsandbytes"),
    (re.compile(r".+\.W_q"), "HQQ"),
    (re.compile(r".+\.codebooks"), "AQLM"),
    (re.compile(r".+\.weight_packed"), "compressed-tensors (packed)"),
    (re.compile(r".+\.weight_scale_2"), "NVFP4"),
    (re.compile(r".+\.weight\._data"), "quanto"),
)
_BLOCKS, _SCALES = "_blocks", "_scales"


def refuse_packed_numbers(checkpoint: Checkpoint) -> None:
    """Nothing for a checkpoint whose tensors are numbers.

    Raises:
        CheckpointError: they are packed; names the method and the way out.
    """
    method = _by_names(checkpoint) or _by_config(checkpoint)
    if method is not None:
        raise CheckpointError(
            f"{checkpoint.label}: its weights are quantised with {method}, and codes packed like that are no numbers "
            "to merge; merge the model it was made from, or one that was dequantised and saved in 16 bits "
            "(in transformers: model.dequantize(), then save_pretrained)"
        )


def quantisations(config: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    """What a configuration says about how weights were quantised: of the model, and of its parts."""
    for _, part in nested_configs(config):
        yield from (stated for name in QUANTISERS if isinstance(stated := part.get(name), dict))


def _by_names(checkpoint: Checkpoint) -> str | None:
    names = checkpoint.tensors
    for pattern, method in _NAMES:
        if any(map(pattern.fullmatch, names)):
            return method
    pairs = (name.removesuffix(_BLOCKS) for name in names if name.endswith(_BLOCKS))
    return "MXFP4" if any(f"{name}{_SCALES}" in names for name in pairs) else None


def _by_config(checkpoint: Checkpoint) -> str | None:
    """The method that the configuration names, when there are packed tensors at all: some were dequantised since."""
    methods = [_method(stated) for stated in quantisations(checkpoint.config)]
    foreign = next((method for method in methods if method not in READ), None)
    return _WRITTEN.get(foreign, foreign) if foreign and _holds_small_numbers(checkpoint) else None


def _method(stated: Mapping[str, object]) -> str:
    method = stated.get("quant_method")
    if isinstance(method, str):
        return method.lower()[:40]
    return "bitsandbytes" if stated.get("load_in_4bit") or stated.get("load_in_8bit") else "an unnamed method"


def _holds_small_numbers(checkpoint: Checkpoint) -> bool:
    """Whether a matrix is of integers, or of floats of one byte."""
    matrices = (tensor for tensor in checkpoint.tensors.values() if len(tensor.shape) > 1)
    return any(tensor.dtype.kind == "integer" or tensor.dtype.itemsize == 1 for tensor in matrices)
