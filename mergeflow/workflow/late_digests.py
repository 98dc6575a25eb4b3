"""A first run over new models: its tasks hash their own inputs, and keys follow (`execute.input_digests` says why).

A run may begin without digests where no key could save it anything: nothing of an output is there that could be kept,
and no view reads what must be computed, and found again, before it. Only what several programs read is hashed before.
When all tasks are done the recipe is compiled again, now with every digest: the lock, the history and the report are
what they would have been.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mergeflow.execute.events import Listener
from mergeflow.execute.records import InputDigests
from mergeflow.graph.late_keys import LateKeys, with_inputs
from mergeflow.graph.nodes import Graph, Node
from mergeflow.graph.tasks import Known, Task
from mergeflow.graph.values import Compiled
from mergeflow.models.records import TensorSource
from mergeflow.output.layout import Shard, shard_of
from mergeflow.output.target import inspect_target
from mergeflow.recipe.records import Recipe
from mergeflow.workflow.folders import output_folder
from mergeflow.workflow.models import digest_memory, hash_sources
from mergeflow.workflow.options import Options


def may_hash_later(recipe: Recipe, compiled: Compiled, out: Path | None) -> bool:
    """Whether a run may begin before its inputs are hashed: some are not, and nothing is there that keys could save."""
    graph = compiled.graph
    if all(node.key is not None for node in graph) or any(_needs_parts(graph, node) for node in graph):
        return False
    # A delta's file says in its header what it was made of.
    return all(
        output.type == "weights" and _is_new(output_folder(recipe, output.output, out)) for output in compiled.outputs
    )


def _needs_parts(graph: Graph, node: Node) -> bool:
    return node.kind == "view" and any(graph[i].kind not in ("load", "view") for i in node.inputs)


def _is_new(folder: Path | None) -> bool:
    if folder is None:
        return False
    target = inspect_target(folder)
    return target.lock is None and not target.staging.exists()


class LateDigests:
    """What the tasks of such a run find out. One thread at a time.

    Args:
        compiled: without the missing digests.
    """

    def __init__(self, recipe: Recipe, compiled: Compiled, out: Path | None, options: Options) -> None:
        self._keys = LateKeys(compiled.graph)
        self._options = options
        self._notes = digest_memory(options.state).notebook()
        self._known: set[str] = set()
        self._nodes: dict[Path, dict[str, int]] = {}
        for output in compiled.outputs:
            folder = output_folder(recipe, output.output, out)
            assert folder is not None  # `may_hash_later` has seen to it
            self._nodes[inspect_target(folder).path] = {tensor.name: tensor.node for tensor in output.tensors}

    @property
    def digests(self) -> Mapping[TensorSource, str]:
        """Every digest known by now."""
        return self._keys.digests

    def hash_shared(self, tasks: Sequence[Task], listen: Listener) -> tuple[Task, ...]:
        """The same tasks with the digests of what several programs read, which are hashed now."""
        read = Counter(source for source, _ in _unhashed(tasks))
        shared = [source for source, times in read.items() if times > 1 and source not in self.digests]
        if shared:
            self._keys.learn(hash_sources(shared, self._options, listen))
        digests = self.digests
        return tuple(
            replace(task, programs=tuple(with_inputs(program, digests) for program in task.programs)) for task in tasks
        )

    def learn(self, inputs: InputDigests) -> None:
        """Note what a task has found out."""
        self._keys.learn(inputs.digests)
        self._notes.add(inputs.digests, inputs.quiet)
        self._known.update(inputs.known)

    def keyed(self, target: Path, shard: Shard) -> Shard:
        """A shard for the folder `target` whose tensors are all there, with their keys."""
        nodes = self._nodes[target]
        tensors = [replace(placed.tensor, key=self._keys.key(nodes[placed.tensor.name])) for placed in shard.tensors]
        return shard_of(shard.file, tensors, shard.metadata)

    def save(self) -> None:
        """Remember the digests found by now."""
        self._notes.save()

    def known(self, compiled: Compiled, *, cache_is_off: bool) -> Known:
        """What the cache turned out to have.

        Args:
            compiled: with every digest.
        """
        found = [node for node in compiled.graph if node.key in self._known]
        tensors = frozenset(node.key or "" for node in found if node.kind != "statistic")
        return Known(tensors, cache_is_off, {node.key or "": None for node in found if node.kind == "statistic"})


def _unhashed(tasks: Iterable[Task]) -> list[tuple[TensorSource, int]]:
    """(tensor, number of the program) of what programs read without knowing its digest."""
    programs = [program for task in tasks for program in task.programs]
    found = {
        (source, number)
        for number, program in enumerate(programs)
        for it in program.instructions
        if not it.key
        for source in it.sources()
    }
    return list(found)
