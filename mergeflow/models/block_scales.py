"""Weights of 8 bits with scales, as the numbers they stand for.

    X.weight (rows, columns) of fp8 or int8, and its scales:
    X.weight_scale_inv (ceil(rows / b0), ceil(columns / b1))      DeepSeek's fp8; blocks of 128 x 128 unless stated
    X.weight_scale (), (1), (rows) or (rows, 1), or in blocks      compressed-tensors, FBGEMM, ModelOpt

In either the weight is X.weight * scale (the "inverse" is the inverse of what it was divided by). Experts packed into
one tensor (experts, rows, columns) have their scales in one as well. The scales, and those that belong to activations
only, are no tensors of the model that comes out; nor is how it was quantised part of its configuration.

The model was made from one of 16 bits, and is written so when nobody says otherwise: in the dtype of its config.json,
or bfloat16. A tensor of 8 bits without scales is a tensor like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from mergeflow.dtypes import BFLOAT16, FLOAT16, FLOAT32, DType
from mergeflow.errors import CheckpointError
from mergeflow.models.config_parts import QUANTISERS, nested_configs, with_every_part
from mergeflow.models.packed_numbers import quantisations, refuse_packed_numbers
from mergeflow.models.records import Checkpoint, TensorSource, TensorView

Tensor = TensorSource | TensorView
Block = tuple[int, int]

DEEPSEEK_BLOCK = (128, 128)
_SCALES = ("_scale_inv", "_scale")
_OFFSET = "_zero_point"
_WEIGHT = ".weight"
# What a quantised module may have beside its weight: scales of what goes in and out.
_BESIDE = (".input_scale", ".output_scale", ".activation_scale", ".input_scale_ub")
_CACHE_SCALES = (".k_scale", ".v_scale", ".q_scale")
_EIGHT_BITS = ("float8_e4m3fn", "float8_e5m2", "int8")
_USUAL: Mapping[str, DType] = {dtype.name: dtype for dtype in (BFLOAT16, FLOAT16, FLOAT32)}
_QUANTISATION_FILES = frozenset({"hf_quant_config.json", "quantize_config.json", "quant_config.json"})


def dequantised(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with its scaled 8-bit weights as what they stand for; the same one when it has none.

    Raises:
        CheckpointError: its weights are packed in a way we do not read, or scales do not fit their weight.
    """
    refuse_packed_numbers(checkpoint)
    pairs = dict(_scaled(checkpoint.tensors, checkpoint.label))
    if not pairs:
        return checkpoint
    stored, declared = _stored(checkpoint.config), _declared_blocks(checkpoint.config)
    gone = {*pairs.values(), *(beside for name in pairs for beside in _beside(name))}
    tensors: dict[str, Tensor] = {}
    for name, tensor in checkpoint.tensors.items():
        if name in pairs:
            scale = checkpoint.tensors[pairs[name]]
            block = _block(tensor, scale, declared, checkpoint.label)
            parameters = (("block", block),)
            tensors[name] = TensorView(name, FLOAT32, tensor.shape, "block_scaled", (tensor, scale), parameters, stored)
        elif name not in gone and not _is_cache_scale(name, tensor):
            tensors[name] = tensor
    files = tuple(path for path in checkpoint.files if path not in _QUANTISATION_FILES)
    return replace(checkpoint, tensors=tensors, config=_without_quantisation(checkpoint.config), files=files)


def _scaled(tensors: Mapping[str, Tensor], label: str) -> Iterator[tuple[str, str]]:
    """The name of each weight of 8 bits that has scales, and of these."""
    for name, tensor in tensors.items():
        if tensor.dtype.name not in _EIGHT_BITS or len(tensor.shape) < 2:
            continue
        found = [name + end for end in _SCALES if name + end in tensors and tensors[name + end].dtype.is_float]
        if found and name + _OFFSET in tensors:
            raise CheckpointError(
                f"{label}: tensor {name!r:.120} is quantised with an offset ({_OFFSET}), which this version does not "
                "read; merge the model it was made from"
            )
        if found:
            yield name, found[0]


def _beside(name: str) -> Iterator[str]:
    if name.endswith(_WEIGHT):
        yield from (name.removesuffix(_WEIGHT) + end for end in _BESIDE)


def _is_cache_scale(name: str, tensor: Tensor) -> bool:
    return name.endswith(_CACHE_SCALES) and tensor.size == 1


def _block(tensor: Tensor, scale: Tensor, declared: tuple[Block, ...], label: str) -> Block:
    """Rows and columns that share a scale."""
    *matrices, rows, columns = tensor.shape
    shape = scale.shape
    if not matrices and len(shape) < 2:
        # One for the whole tensor, or one for each row.
        shape = (scale.size, 1)
    for high, wide in (*declared, DEEPSEEK_BLOCK, (1, columns), (rows, columns)):
        if min(high, wide) > 0 and shape == (*matrices, -(-rows // high), -(-columns // wide)):
            return high, wide
    blocks = " or ".join(f"{high} x {wide}" for high, wide in dict.fromkeys((*declared, DEEPSEEK_BLOCK)))
    raise CheckpointError(
        f"{label}: tensor {tensor.name!r:.120} has shape {tensor.shape}, and its scales {scale.shape}: neither one for "
        f"the whole, nor for each row, nor for each block of {blocks}"
    )


def _declared_blocks(config: Mapping[str, object]) -> tuple[Block, ...]:
    """The blocks that a configuration speaks of."""
    stated: list[object] = []
    for quantisation in quantisations(config):
        stated.append(quantisation.get("weight_block_size"))
        groups = quantisation.get("config_groups")
        for group in groups.values() if isinstance(groups, dict) else ():
            weights = group.get("weights") if isinstance(group, dict) else None
            stated.append(weights.get("block_structure") if isinstance(weights, dict) else None)
    pairs = (value for value in stated if isinstance(value, list) and len(value) == 2)
    return tuple((b, c) for b, c in pairs if type(b) is int and type(c) is int and b > 0 and c > 0)


def _stored(config: Mapping[str, object]) -> DType:
    """The dtype of the model as its configuration states it; bfloat16 where it does not."""
    stated = (part.get(word) for _, part in nested_configs(config) for word in ("dtype", "torch_dtype"))
    names = (word.removeprefix("torch.") for word in stated if isinstance(word, str))
    return next((_USUAL[name] for name in names if name in _USUAL), BFLOAT16)


def _without_quantisation(config: Mapping[str, object]) -> dict[str, object]:
    return with_every_part(config, lambda _, part: {key: value for key, value in part.items() if key not in QUANTISERS})
