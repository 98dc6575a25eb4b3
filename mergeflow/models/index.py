"""Which shard holds which tensor: ``model.safetensors.index.json``, and the shards' headers held against it.

(Or ``pytorch_model.bin.index.json``, which is the same for pickled shards.)

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
from mergeflow.models.names import in_natural_order
from mergeflow.models.records import TensorSource, TensorView
from mergeflow.models.strict_json import parse_object

INDEX_NAME = "model.safetensors.index.json"
PICKLED_INDEX_NAME = "pytorch_model.bin.index.json"
SINGLE_NAME = "model.safetensors"
PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
MAX_INDEX_BYTES = 100_000_000


def parse_index(text: bytes, where: str, name: str = INDEX_NAME) -> Mapping[str, str]:
    """The `weight_map` of an index: tensor name -> shard, a path relative to the folder, normalised.

    Args:
        name: the index's own, which says what its shards are: safetensors files or pickles.

    Raises:
        CheckpointError: not an index, or a shard's path leaves the folder or is no file of that kind.
    """
    pickled = name == PICKLED_INDEX_NAME
    weight_map = parse_object(text, where, unique=True).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{where}: has no weight_map")
    shards: dict[str, str] = {}
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            raise CheckpointError(f"{where}: weight_map[{tensor!r:.120}] is not the name of a file")
        if shard not in shards:
            shards[shard] = _shard(shard, where, pickled=pickled)
    return {tensor: shards[shard] for tensor, shard in weight_map.items()}


def assemble(
    shards: Mapping[str, Mapping[str, TensorSource | TensorView]], weight_map: Mapping[str, str], place: str
) -> dict[str, TensorSource | TensorView]:
    """Every tensor of the shards, by name, in natural order.

    Args:
        shards: file -> its tensors.
        weight_map: what the index says; empty when there is none.
        place: where the shards are, for messages: a folder, or a repository on the hub.

    Raises:
        CheckpointError: a tensor is not in the shard that should hold it, or is in two.
    """
    for name, shard in weight_map.items():
        if name not in shards[shard]:
            raise CheckpointError(f"{place}/{shard}: lacks tensor {name!r:.120}, which the index says is in it")
    tensors: dict[str, TensorSource | TensorView] = {}
    owners: dict[str, str] = {}
    for shard, found in shards.items():
        repeated = tensors.keys() & found.keys()
        if repeated:
            name = min(repeated)
            raise CheckpointError(f"{place}/{shard}: tensor {name!r:.120} is also in {owners[name]}")
        tensors.update(found)
        owners.update(dict.fromkeys(found, shard))
    return {name: tensors[name] for name in in_natural_order(tensors)}


def _shard(text: str, where: str, *, pickled: bool) -> str:
    """The shard's path, made plain."""
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or "\\" in text or "\0" in text:
        raise CheckpointError(f"{where}: {text!r:.120} points outside the folder")
    if path.suffix not in (PICKLED_SUFFIXES if pickled else (".safetensors",)):
        raise CheckpointError(f"{where}: {text!r:.120} is not a {'pickled' if pickled else 'safetensors'} file")
    return str(path)
