"""Which shard holds which tensor: ``model.safetensors.index.json``, and the shards' headers held against it.

The index comes with the checkpoint, so a path in it is a stranger's path: it must stay inside the folder. (A shard may
be a symbolic link, as in the hub's own cache: that is the owner's arrangement, not the index's.)

A tensor that stands in a shard but not in the index belongs to the checkpoint: transformers loads every tensor of the
shards an index names, and leaving one out would drop weights without a word. A shard that the index does not name is
not read: it is a left-over of an earlier save.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

from mergeflow.errors import CheckpointError
from mergeflow.models.header import Header
from mergeflow.models.names import in_natural_order
from mergeflow.models.records import TensorSource
from mergeflow.models.strict_json import parse_object

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_INDEX_BYTES = 100_000_000


def parse_index(text: bytes, where: str) -> Mapping[str, str]:
    """The `weight_map` of an index: tensor name -> shard, a path relative to the folder, normalised.

    Raises:
        CheckpointError: not an index, or a shard's path leaves the folder or is no safetensors file.
    """
    weight_map = parse_object(text, where, unique=True).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{where}: has no weight_map")
    shards: dict[str, str] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str):
            raise CheckpointError(f"{where}: weight_map[{name!r:.120}] is not the name of a file")
        if shard not in shards:
            shards[shard] = _shard(shard, where)
    return {name: shards[shard] for name, shard in weight_map.items()}


def assemble(headers: Mapping[str, Header], weight_map: Mapping[str, str]) -> dict[str, TensorSource]:
    """Every tensor of the shards, by name, in natural order.

    Args:
        headers: shard -> its header.
        weight_map: what the index says; empty when there is none.

    Raises:
        CheckpointError: a tensor is not in the shard that should hold it, or is in two.
    """
    for name, shard in weight_map.items():
        if name not in headers[shard].tensors:
            raise CheckpointError(f"{headers[shard].file.path}: lacks tensor {name!r}, which the index says is in it")
    tensors: dict[str, TensorSource] = {}
    for header in headers.values():
        repeated = tensors.keys() & header.tensors.keys()
        if repeated:
            name = min(repeated)
            other = tensors[name].segments[0].file.path
            raise CheckpointError(f"{header.file.path}: tensor {name!r} is also in {PurePosixPath(other).name}")
        tensors.update(header.tensors)
    return {name: tensors[name] for name in in_natural_order(tensors)}


def _shard(text: str, where: str) -> str:
    """The shard's path, made plain."""
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or "\\" in text or "\0" in text:
        raise CheckpointError(f"{where}: {text!r:.120} points outside the folder")
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{where}: {text!r:.120} is not a safetensors file")
    return str(path)
