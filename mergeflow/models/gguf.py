"""A GGUF file as a model: its tensors under transformers' names, and the configuration it would have there.

What a GGUF file holds as plain numbers is read as it is. What it holds quantised, a matrix of Q4_K or of Q8_0, is a
view: the numbers its blocks stand for, in float32, computed as they are read. Such a matrix is written as bfloat16
when nobody says otherwise (`STORED`): it was made from one, nearly always, and more digits than that it no longer has.

Files of the original Llama's kind have the rows of queries and keys in another order than transformers; they are read
in its order (`rotary_rows`). All experts' matrices of a layer are one tensor here, and there one for each.

Architectures are those of `gguf_names`; another one is refused, as is a tensor that has no place in its own.
"""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mergeflow.dtypes import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, DType, by_name
from mergeflow.errors import CheckpointError
from mergeflow.models.gguf_config import Metadata, gguf_config, head_size
from mergeflow.models.gguf_header import GgufHeader, GgufTensor, gguf_header
from mergeflow.models.gguf_names import ARCHITECTURES, FREQUENCIES, Architecture, architecture, is_rotary, tensor_name
from mergeflow.models.ranges import Ranges, open_ranges
from mergeflow.models.records import Segment, TensorSource, TensorView

_LOG = logging.getLogger(__name__)
# The dtype a quantised matrix is written in when nobody says otherwise.
STORED = BFLOAT16
_PLAIN: Mapping[str, DType] = {"F32": FLOAT32, "F16": FLOAT16, "BF16": BFLOAT16, "F64": FLOAT64}
_BYTES = by_name("uint8")
MAX_EXPERTS = 4096
MAX_FREQUENCIES = 4096


@dataclass(frozen=True, slots=True)
class Gguf:
    """The tensors of a GGUF file by transformers' names, and the configuration of its model."""

    tensors: Mapping[str, TensorSource | TensorView]
    config: Mapping[str, object]


def read_gguf(path: Path) -> Gguf:
    """A GGUF file's model, from its header (and the table of frequencies, when it has one).

    Raises:
        CheckpointError: the file is damaged or lying, of an architecture that we do not know, or one of several parts.
    """
    with open_ranges(path) as ranges:
        return gguf_model(ranges)


def gguf_model(ranges: Ranges) -> Gguf:
    """As `read_gguf`, of a file wherever it is."""
    header = gguf_header(ranges)
    _check_is_whole(header)
    family = _architecture(header)
    tensors = dict(_tensors(header, family))
    stored = next((tensor.stored for tensor in tensors.values() if len(tensor.shape) > 1), STORED)
    return Gguf(tensors, gguf_config(header, family, stored, _frequencies(header, ranges)))


def read_gguf_tensors(path: Path) -> Mapping[str, TensorSource | TensorView]:
    """The tensors of a GGUF file's model. Raises as `read_gguf`."""
    return read_gguf(path).tensors


def tell_of_tokenizer(place: object, beside: Container[str]) -> None:
    """A warning when what lies beside a GGUF file has no tokenizer: that in the file is not read."""
    if not any(name in beside for name in ("tokenizer.json", "tokenizer.model")):
        _LOG.warning("%s: the tokenizer inside a GGUF file is not read; name a model that the tokenizer is from", place)


def _check_is_whole(header: GgufHeader) -> None:
    parts = header.metadata.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise CheckpointError(
            f"{header.file.path}: is one of {parts} parts of a model; put them together first (gguf-split --merge)"
        )
    if header.metadata.get("general.type", "model") != "model":
        raise CheckpointError(
            f"{header.file.path}: holds a GGUF {header.metadata['general.type']!r:.40}, and not a model"
        )


def _architecture(header: GgufHeader) -> Architecture:
    name = header.metadata.get("general.architecture")
    found = architecture(name, experts=any("_exps." in role for role in header.tensors))
    if found is None:
        raise CheckpointError(
            f"{header.file.path}: a GGUF file of architecture {name!r:.40}; those that can be read are "
            f"{', '.join(ARCHITECTURES)}; merge the original weights instead, or load it in transformers "
            "(gguf_file=...) and save it again"
        )
    return found


def _tensors(header: GgufHeader, family: Architecture) -> Iterator[tuple[str, TensorSource | TensorView]]:
    """Every tensor of the model, under its name in transformers."""
    metadata = Metadata(header)
    for role, tensor in header.tensors.items():
        if role == FREQUENCIES:
            continue
        name = tensor_name(role, family)
        if name is None:
            raise CheckpointError(
                f"{header.file.path}: tensor {role!r:.120} has no place in a {family.model_type}; merge the original "
                "weights instead"
            )
        if "{}" in name:
            yield from _experts(name, tensor, header)
            continue
        found = _tensor(name, tensor, header)
        if family.rotary and is_rotary(role):
            found = _in_order(found, role, metadata, header)
        yield name, found


def _tensor(name: str, tensor: GgufTensor, header: GgufHeader) -> TensorSource | TensorView:
    """A tensor as the file has it: plain, or the numbers that its blocks stand for."""
    segment = Segment(header.file, tensor.offset, tensor.nbytes)
    plain = _PLAIN.get(tensor.type.name)
    if plain is not None:
        return TensorSource(name, plain, tensor.shape, (segment,))
    blocks = TensorSource(name, _BYTES, (tensor.nbytes,), (segment,))
    return TensorView(name, FLOAT32, tensor.shape, "gguf", (blocks,), (("format", tensor.type.name),), STORED)


def _experts(name: str, tensor: GgufTensor, header: GgufHeader) -> Iterator[tuple[str, TensorSource | TensorView]]:
    """All experts' matrices in one, each as a tensor by itself: (experts, rows, columns) -> experts x (rows, columns).

    Rows are whole blocks, so that an expert's bytes are a run of the tensor's.
    """
    if len(tensor.shape) != 3 or tensor.shape[0] > MAX_EXPERTS:
        raise CheckpointError(
            f"{header.file.path}: tensor {tensor.name!r:.120} has shape {tensor.shape}; experts have three dimensions, "
            f"the first at most {MAX_EXPERTS}"
        )
    each = tensor.nbytes // tensor.shape[0]
    for number in range(tensor.shape[0]):
        expert = replace(tensor, shape=tensor.shape[1:], offset=tensor.offset + number * each)
        yield name.format(number), _tensor(name.format(number), expert, header)


def _in_order(tensor: TensorSource | TensorView, role: str, metadata: Metadata, header: GgufHeader) -> TensorView:
    """A query or key matrix (or its bias) whose rows stand in pairs, in the order of transformers."""
    heads = metadata.count("attention.head_count")
    if ".attn_k." in role:
        heads = metadata.count("attention.head_count_kv", heads)
    if tensor.shape[0] != heads * head_size(metadata) or head_size(metadata) % 2:
        raise CheckpointError(
            f"{header.file.path}: tensor {role!r:.120} has {tensor.shape[0]} rows, which are not those of {heads} "
            f"heads of {head_size(metadata)}"
        )
    parameters = (("heads", heads),)
    return TensorView(tensor.name, tensor.dtype, tensor.shape, "rotary_rows", (tensor,), parameters, tensor.stored)


def _frequencies(header: GgufHeader, ranges: Ranges) -> tuple[float, ...] | None:
    """What the table of frequencies holds: a few dozen numbers; None when there is no table."""
    table = header.tensors.get(FREQUENCIES)
    if table is None:
        return None
    count = math.prod(table.shape)
    if table.type.name != "F32" or count > MAX_FREQUENCIES:
        raise CheckpointError(f"{header.file.path}: {FREQUENCIES} is {table.type.name} of shape {table.shape}")
    found = ranges.read(table.offset, table.nbytes)
    if len(found) != table.nbytes:
        raise CheckpointError(f"{header.file.path}: became shorter while reading")
    return struct.unpack(f"<{count}f", found)
