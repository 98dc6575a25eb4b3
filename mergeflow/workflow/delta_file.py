"""A delta in one safetensors file: what it is stands in its header, and so does its lock.

    mergeflow.type     delta
    mergeflow.version  of the mergeflow that wrote it
    mergeflow.step     the step whose result it is
    mergeflow.base     digest of the model it is a difference to, and
    mergeflow.base_name   how the recipe calls that model; neither for an adapter, which has no base of its own
    mergeflow.lock     the lock, without shards: they are the file itself   (of a file that stands alone)
    mergeflow.keys     the key of each tensor                               (likewise)

The shards of a delta in a folder say the same, and their lock lies beside them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mergeflow import __version__
from mergeflow.errors import CheckpointError, OutputError
from mergeflow.graph.keys import combined_key
from mergeflow.graph.values import Compiled, CompiledOutput
from mergeflow.models.header import DELTA_MARK, read_header
from mergeflow.models.strict_json import parse_object
from mergeflow.output.json_fields import texts
from mergeflow.output.layout import OutputTensor, Shard, shard_of
from mergeflow.output.lock import Lock, lock_json, parse_lock
from mergeflow.recipe.records import ModelReference, Recipe, Source, StepReference

SUFFIX = ".safetensors"
VERSION, STEP = "mergeflow.version", "mergeflow.step"
BASE, BASE_NAME = "mergeflow.base", "mergeflow.base_name"
LOCK, KEYS = "mergeflow.lock", "mergeflow.keys"


def delta_metadata(recipe: Recipe, compiled: Compiled, made: CompiledOutput) -> dict[str, str]:
    """What the header of each shard of a delta says."""
    metadata = {"format": "pt", DELTA_MARK[0]: DELTA_MARK[1], VERSION: __version__, STEP: made.output.step}
    base = base_of(recipe, made.output.step)
    if base is None:
        return metadata
    metadata[BASE_NAME] = str(base)
    digest = _digest(base, compiled)
    return metadata if digest is None else {**metadata, BASE: digest}


def with_lock(metadata: Mapping[str, str], lock: Lock, keys: Mapping[str, str | None]) -> dict[str, str]:
    """The same for a file that stands alone."""
    return {**metadata, LOCK: lock_json(lock), KEYS: json.dumps(keys, ensure_ascii=False, separators=(",", ":"))}


def is_delta_file(path: Path) -> bool:
    """Whether a file is a delta that mergeflow wrote as one file."""
    if path.suffix != SUFFIX or not path.is_file():
        return False
    try:
        metadata = read_header(path).metadata
    except CheckpointError:
        return False
    return metadata.get(DELTA_MARK[0]) == DELTA_MARK[1] and LOCK in metadata


def lock_in_file(path: Path) -> Lock:
    """The lock of a delta in one file, with the file as its only shard.

    Raises:
        CheckpointError: the file is damaged.
        OutputError: it is no such file, or what it says of itself cannot be believed.
    """
    header = read_header(path)
    if LOCK not in header.metadata or KEYS not in header.metadata:
        raise OutputError(f"{path} is no delta that mergeflow exported: its header has no lock")
    try:
        lock = parse_lock(header.metadata[LOCK])
        keys = texts(parse_object(header.metadata[KEYS].encode(), "the keys", unique=True), "the keys")
    except (OutputError, CheckpointError) as error:
        raise OutputError(f"{path}: the lock in its header cannot be used: {error}") from error
    tensors = [OutputTensor(name, it.dtype, it.shape, keys.get(name)) for name, it in header.tensors.items()]
    return replace(lock, shards=(_as_written(path, shard_of(path.name, tensors, header.metadata)),), samples={})


def _as_written(path: Path, shard: Shard) -> Shard:
    """The shard, which must be laid out as we lay files out."""
    with path.open("rb") as stream:
        if stream.read(len(shard.header)) != shard.header:
            raise OutputError(f"{path}: its header is not as mergeflow wrote it")
    return shard


def base_of(recipe: Recipe, name: str) -> Source | None:
    """What a delta is a difference to: its step's base, else that of the first delta it is made of."""
    for _ in recipe.steps:  # no chain of steps is longer
        step = recipe.step(name)
        if step.is_adapter:
            return step.base
        if step.base is not None:
            return step.base
        first = step.sources()[0]
        if isinstance(first, ModelReference):
            return None
        name = first.name
    return None


def _digest(base: Source, compiled: Compiled) -> str | None:
    """One digest for all tensors of a model, as a lock states it, or of a step's result."""
    graph = compiled.graph
    if isinstance(base, StepReference):
        result = compiled.results.get(base.name)
        keys = {} if result is None else {name: graph[it.node].key for name, it in result.tensors.items()}
    else:
        keys = {name: graph.key(source) for name, source in compiled.checkpoints[base].tensors.items()}
    known = {name: key for name, key in keys.items() if key is not None}
    if not keys or len(known) < len(keys):
        return None
    return combined_key([item for pair in sorted(known.items()) for item in pair])
