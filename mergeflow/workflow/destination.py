"""The folders a run writes, the shards in them, and which tensors must be brought there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mergeflow.graph.program import Place
from mergeflow.graph.tasks import Target
from mergeflow.graph.values import Compiled, CompiledOutput
from mergeflow.output.compare import NOWHERE, Extent, ShardWork, compare
from mergeflow.output.layout import DELTA_STEM, OutputTensor, Shard, plan_shards
from mergeflow.output.target import inspect_target
from mergeflow.recipe.records import Recipe
from mergeflow.workflow.delta_file import delta_metadata, with_lock
from mergeflow.workflow.folders import output_folder
from mergeflow.workflow.locking import lock_of


@dataclass(frozen=True, slots=True)
class Destination:
    """One model to write: where (None while nobody has said), and how it is laid out in shards."""

    compiled: CompiledOutput
    path: Path | None
    shards: tuple[Shard, ...]

    @property
    def step(self) -> str:
        return self.compiled.output.step


def destinations(recipe: Recipe, compiled: Compiled, out: Path | None) -> tuple[Destination, ...]:
    """Every output with its folder and its shards."""
    return tuple(
        Destination(output, output_folder(recipe, output.output, out), _shards(recipe, compiled, output))
        for output in compiled.outputs
    )


def present_works(destination: Destination, elsewhere: Mapping[str, Extent] = NOWHERE) -> tuple[ShardWork, ...] | None:
    """What is to be done for each shard, as far as can be seen without touching the folder; None without a folder.

    Args:
        elsewhere: tensors that folders of other candidates hold, by key.
    """
    if destination.path is None:
        return None
    return compare(inspect_target(destination.path), destination.shards, elsewhere=elsewhere)


def targets(destination: Destination, works: Sequence[ShardWork] | None) -> list[Target]:
    """The tensors that must be computed, in the order of the shards, and where their bytes go."""
    nodes = {tensor.name: tensor.node for tensor in destination.compiled.tensors}
    step = destination.step
    if works is None:
        return [Target(node, name, step, Place("", 0)) for name, node in nodes.items()]
    return [
        Target(nodes[place.tensor.name], place.tensor.name, step, Place(str(place.extent.file), place.extent.offset))
        for work in works
        for place in work.places
        if place.copy_from is None
    ]


def _shards(recipe: Recipe, compiled: Compiled, output: CompiledOutput) -> tuple[Shard, ...]:
    tensors = [
        OutputTensor(tensor.name, tensor.dtype, tensor.shape, compiled.graph[tensor.node].key)
        for tensor in output.tensors
    ]
    most = output.output.max_shard_bytes
    if output.type == "weights":
        return plan_shards(tensors, most)
    metadata = delta_metadata(recipe, compiled, output)
    if output.output.delta == "folder":
        return plan_shards(tensors, most, stem=DELTA_STEM, metadata=metadata)
    keys = {tensor.name: tensor.key for tensor in tensors}
    metadata = with_lock(metadata, lock_of(recipe, compiled, output), keys)
    return plan_shards(tensors, 0, stem=DELTA_STEM, metadata=metadata)
