"""Where every tensor will lie, before a byte of it exists.

The rule of shards is mergekit's (specification, 10.4): tensors are taken in the given order, and a shard ends when it
holds something and the next tensor would take its data over the limit. So a tensor larger than the limit gets a shard
of its own, and no tensor is ever split. Sizes are bytes of data; the header is not counted.

The rule of bytes is the safetensors library's: eight bytes of header length, the header as compact JSON padded with
spaces to a multiple of eight, then the tensors without a gap. The format allows no padding between tensors, so inside a
shard wider number formats come first (else an odd count of 16-bit values would put the 64-bit ones after it off their
natural alignment); tensors of the same width keep the given order.

A shard's key is a hash of its header and of its tensors' keys: everything that determines its bytes, and not its
file name, so that a shard survives the renumbering of its neighbours.

A delta has other names (``delta.safetensors``) and says in each header what it is: no loader of models finds it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from blake3 import blake3

from mergeflow.dtypes import DType
from mergeflow.errors import OutputError
from mergeflow.output.text import json_text

INDEX_FILE = "model.safetensors.index.json"
MODEL_STEM, DELTA_STEM = "model", "delta"

# The safetensors library refuses to open anything with a longer header.
MAX_HEADER_BYTES = 100_000_000

_HEADER_ALIGNMENT = 8
# transformers 4 refuses a file that does not say which framework it is for.
PLAIN_METADATA: Mapping[str, str] = MappingProxyType({"format": "pt"})


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """A tensor to be written. `key` determines its bytes; None when nothing may be assumed about them."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    key: str | None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class PlacedTensor:
    """A tensor and where it lies in its shard: `offset` counts bytes from the start of the file."""

    tensor: OutputTensor
    offset: int


@dataclass(frozen=True, slots=True)
class Shard:
    """One safetensors file, laid out.

    Args:
        file: its name in the model folder.
        tensors: in the order of their bytes.
        header: the first bytes of the file, up to where the data starts (the length field included).
        size: of the whole file, in bytes.
        key: the same for two shards exactly when their bytes are; None when a tensor's key is.
        metadata: what the header says beside its tensors.
    """

    file: str
    tensors: tuple[PlacedTensor, ...]
    header: bytes
    size: int
    key: str | None
    metadata: Mapping[str, str] = field(default_factory=lambda: dict(PLAIN_METADATA))

    @property
    def data_bytes(self) -> int:
        return self.size - len(self.header)


def plan_shards(
    tensors: Sequence[OutputTensor],
    max_shard_bytes: int,
    *,
    stem: str = MODEL_STEM,
    metadata: Mapping[str, str] = PLAIN_METADATA,
) -> tuple[Shard, ...]:
    """Spread `tensors`, in their order, over shards of at most `max_shard_bytes` of data (0: no limit).

    One shard is called ``model.safetensors``, several ``model-00001-of-0000N.safetensors``. No tensors, no shards.

    Args:
        stem: what file names begin with, in place of ``model``.
        metadata: what each header says beside its tensors.

    Raises:
        OutputError: two tensors share a name, or a name cannot be written in a safetensors header.
    """
    _check_names(tensors)
    groups = _group(tensors, max_shard_bytes)
    return tuple(
        shard_of(_file_name(stem, number, len(groups)), group, metadata) for number, group in enumerate(groups, start=1)
    )


def shard_of(file: str, tensors: Sequence[OutputTensor], metadata: Mapping[str, str] = PLAIN_METADATA) -> Shard:
    """The shard called `file` that holds exactly these tensors, wider number formats first."""
    ordered = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)
    header = _header(ordered, metadata)

    placed = []
    offset = len(header)
    for tensor in ordered:
        placed.append(PlacedTensor(tensor, offset))
        offset += tensor.nbytes

    return Shard(file, tuple(placed), header, offset, _shard_key(header, ordered), dict(metadata))


def index_file(shards: Sequence[Shard]) -> str:
    """The name of the index of some shards: that of a model, or of a delta."""
    is_delta = any(shard.file.startswith(f"{DELTA_STEM}-") for shard in shards)
    return INDEX_FILE.replace(MODEL_STEM, DELTA_STEM, 1) if is_delta else INDEX_FILE


def index_json(shards: Sequence[Shard]) -> str:
    """The text of the index: which file holds which tensor, in written order."""
    weight_map = {placed.tensor.name: shard.file for shard in shards for placed in shard.tensors}
    total = sum(shard.data_bytes for shard in shards)
    index: Mapping[str, object] = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return json_text(index)


def _group(tensors: Sequence[OutputTensor], max_shard_bytes: int) -> list[list[OutputTensor]]:
    groups: list[list[OutputTensor]] = []
    filled = 0
    for tensor in tensors:
        overflows = 0 < max_shard_bytes < filled + tensor.nbytes
        if not groups or overflows:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.nbytes
    return groups


def _file_name(stem: str, number: int, count: int) -> str:
    return f"{stem}.safetensors" if count == 1 else f"{stem}-{number:05d}-of-{count:05d}.safetensors"


def _header(tensors: Sequence[OutputTensor], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    start = 0
    for tensor in tensors:
        end = start + tensor.nbytes
        entries[tensor.name] = {"dtype": tensor.dtype.code, "shape": tensor.shape, "data_offsets": (start, end)}
        start = end

    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise OutputError(
            f"a shard of {len(tensors)} tensors needs a header of {len(text)} bytes, and safetensors files may have "
            f"{MAX_HEADER_BYTES}: set a smaller max_shard_size"
        )
    return len(text).to_bytes(8, "little") + text


def _shard_key(header: bytes, tensors: Sequence[OutputTensor]) -> str | None:
    keys = [tensor.key for tensor in tensors]
    if None in keys:
        return None
    contents = ["shard/1", blake3(header).hexdigest(), keys]
    return blake3(json.dumps(contents, separators=(",", ":")).encode()).hexdigest()


def _check_names(tensors: Sequence[OutputTensor]) -> None:
    seen = set()
    for tensor in tensors:
        name = tensor.name
        if name in seen:
            raise OutputError(f"two tensors are called {name!r}: a model folder holds each name once")
        if name == "__metadata__" or not _is_unicode(name):
            raise OutputError(f"a safetensors file cannot hold a tensor called {name!r}")
        seen.add(name)


def _is_unicode(name: str) -> bool:
    # JSON can smuggle half a surrogate pair into a name; the Rust reader of safetensors cannot hold one.
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)
