"""From a compiled recipe to a plan: look into the cache and the outputs, and see what is left to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from mergeflow.cache.open import open_cache
from mergeflow.errors import CorruptEntry
from mergeflow.execute.events import Listener, Warned
from mergeflow.execute.warmup import may_have_cuda
from mergeflow.graph.memory import Budget, make_budget
from mergeflow.graph.nodes import Graph, Node
from mergeflow.graph.plan import Plan, computed_keys, make_plan
from mergeflow.graph.program import Program
from mergeflow.graph.tasks import Known, Target, needed_nodes
from mergeflow.recipe.records import Recipe
from mergeflow.workflow.destination import destinations, present_works, targets
from mergeflow.workflow.folders import check_folders
from mergeflow.workflow.history_file import read_history
from mergeflow.workflow.models import check, compile_from_headers
from mergeflow.workflow.options import Options, free_memory


def plan_recipe(recipe: Recipe, out: Path | None, options: Options, listen: Listener) -> Plan:
    """What a run would do now. Reads headers, the cache's names and the outputs' locks; no weights.

    Raises:
        RecipeError: the recipe has errors.
        OutputError: an output's folder cannot be used.
    """
    compiled = compile_from_headers(recipe, listen, download=False, state=options.state)
    check(compiled, strict=options.strict)
    check_folders(recipe, compiled.checkpoints.values(), out, needed=False)
    found = destinations(recipe, compiled, out)
    wanted = [target for destination in found for target in targets(destination, present_works(destination))]
    known = look_up(compiled.graph, options.cache, listen)
    history = read_history(options.state, recipe)
    plan = make_plan(recipe, compiled, wanted, known, budget(options), history, native_judge(options.device))
    places = {destination.step: destination.path for destination in found if destination.path is not None}
    outputs = [replace(it, path=str(places[it.step]) if it.step in places else None) for it in plan.outputs]
    return replace(plan, outputs=tuple(outputs))


def native_judge(device: str) -> Callable[[Program], bool]:
    """Which programs the native library evaluates in a run on a device (``auto``, where that is the CPU)."""
    if device != "cpu" and (device != "auto" or may_have_cuda()):
        return lambda _: False

    from mergeflow.execute.native import is_native

    return is_native


def budget(options: Options) -> Budget:
    """What each thread of a run may use."""
    return make_budget(options.memory, options.workers, free_memory())


def look_up(nodes: Iterable[Node], cache: Path | None, listen: Listener) -> Known:
    """What of these values is in the cache, by names alone. A damaged entry counts as not there, with a warning."""
    if cache is None:
        return Known(cache_is_off=True)
    found = open_cache(cache).lookup(
        computed_keys(nodes), on_damage=lambda error: listen(Warned(f"{error}; it counts as a miss"))
    )
    tensors = frozenset(key for key, entry in found.items() if entry.kind == "tensor")
    return Known(tensors, records={key: None for key, entry in found.items() if entry.kind == "record"})


def read_records(graph: Graph, wanted: Sequence[Target], known: Known, cache: Path | None, listen: Listener) -> Known:
    """The same with the values of the statistics a run needs. A damaged one is dropped, with a warning."""
    if cache is None:
        return known
    store = open_cache(cache)
    while True:
        keys = _needed_records(graph, wanted, known)
        records = dict(known.records)
        damaged = []
        for key in keys:
            try:
                records[key] = store.read_record(key)
            except CorruptEntry as error:
                listen(Warned(f"{error}; it is computed again"))
                store.discard(key)
                damaged.append(key)
        for key in damaged:
            del records[key]
        known = Known(known.tensors, known.cache_is_off, records)
        if not damaged:  # else what the damaged ones depend on is needed too
            return known


def _needed_records(graph: Graph, wanted: Sequence[Target], known: Known) -> list[str]:
    nodes = [graph[i] for i in needed_nodes(graph, (target.node for target in wanted), known)]
    return [
        node.key for node in nodes if node.kind == "statistic" and node.key is not None and node.key in known.records
    ]
