"""From a compiled recipe to a plan: look into the cache and the outputs, and see what is left to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mergeflow.cache.open import Where, open_cache
from mergeflow.cache.store import Cache
from mergeflow.errors import CorruptEntry, LostEntry, OutputError
from mergeflow.execute.events import Listener, Warned
from mergeflow.execute.warmup import may_have_cuda
from mergeflow.graph.memory import Budget, make_budget
from mergeflow.graph.nodes import Graph, Node
from mergeflow.graph.plan import Plan, computed_keys, make_plan
from mergeflow.graph.program import Program
from mergeflow.graph.tasks import Known, Target, needed_nodes
from mergeflow.graph.values import Compiled
from mergeflow.recipe.records import Recipe
from mergeflow.workflow.beside import ALONE, Beside
from mergeflow.workflow.destination import Destination, destinations, present_works, targets
from mergeflow.workflow.folders import check_folders
from mergeflow.workflow.keeping import circumstances
from mergeflow.workflow.models import check, compile_from_headers
from mergeflow.workflow.options import Options, free_memory
from mergeflow.workflow.reasons import reasons_of, with_reasons


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, and what it was made from.

    Args:
        wanted: the tensors of outputs that are not there already.
    """

    plan: Plan
    destinations: tuple[Destination, ...]
    wanted: tuple[Target, ...]
    known: Known


def plan_recipe(recipe: Recipe, out: Path | None, options: Options, listen: Listener) -> Plan:
    """What a run would do now, and why. Reads headers, the cache's names and the outputs' locks; no weights.

    Raises:
        RecipeError: the recipe has errors.
        OutputError: an output's folder cannot be used.
    """
    found = planned(recipe, out, options, listen)
    return with_reasons(found.plan, reasons_of(found.plan, found.destinations, found.wanted, found.known, options))


def planned(
    recipe: Recipe, out: Path | None, options: Options, listen: Listener, *, folders_needed: bool = True
) -> Planned:
    """What a run would do now, as `plan_recipe`, but for why.

    Args:
        folders_needed: otherwise an output's folder that cannot be used is taken not to be named.
    """
    compiled = compile_from_headers(recipe, listen, download=False, state=options.state)
    check(compiled, strict=options.strict)
    if folders_needed:
        check_folders(recipe, compiled.checkpoints.values(), out, needed=False)
    found = destinations(recipe, compiled, out)
    if not folders_needed:
        found = tuple(it if _can_be_used(it) else replace(it, path=None) for it in found)
    return _planned(recipe, compiled, found, options, listen)


def plan_compiled(
    recipe: Recipe,
    compiled: Compiled,
    out: Path | None,
    options: Options,
    listen: Listener,
    beside: Beside,
    coming: Known,
) -> Plan:
    """The plan of a candidate of a sweep, which was checked.

    Args:
        beside: what other candidates have and want.
        coming: what earlier ones will have put into the cache.
    """
    found = _planned(recipe, compiled, destinations(recipe, compiled, out), options, listen, beside, coming)
    return with_reasons(found.plan, reasons_of(found.plan, found.destinations, found.wanted, found.known, options))


def _planned(
    recipe: Recipe,
    compiled: Compiled,
    found: tuple[Destination, ...],
    options: Options,
    listen: Listener,
    beside: Beside = ALONE,
    coming: Known | None = None,
) -> Planned:
    works = [present_works(destination, beside.present) for destination in found]
    wanted = [target for pair in zip(found, works, strict=True) for target in targets(*pair)]
    known = look_up(compiled.graph, options.cache, listen)
    if coming is not None:
        known = replace(known, tensors=known.tensors | coming.tensors, records={**known.records, **coming.records})
    told = circumstances(options, compiled, wanted, may_measure=False, beside=beside)
    plan = make_plan(recipe, compiled, wanted, known, budget(options), native_judge(options.device), told)
    places = {destination.step: destination.path for destination in found if destination.path is not None}
    outputs = [replace(it, path=str(places[it.step]) if it.step in places else None) for it in plan.outputs]
    return Planned(replace(plan, outputs=tuple(outputs)), found, tuple(wanted), known)


def _can_be_used(destination: Destination) -> bool:
    try:
        present_works(destination)
    except OutputError:
        return False
    return True


def native_judge(device: str) -> Callable[[Program], bool]:
    """Which programs the native library evaluates in a run on a device (``auto``, where that is the CPU)."""
    if device != "cpu" and (device != "auto" or may_have_cuda()):
        return lambda _: False

    from mergeflow.execute.native import is_native

    return is_native


def budget(options: Options) -> Budget:
    """What each thread of a run may use."""
    return make_budget(options.memory, options.workers, free_memory())


def look_up(nodes: Iterable[Node], cache: Where | None, listen: Listener) -> Known:
    """What of these values is in the cache, by names alone. A damaged entry counts as not there, with a warning."""
    if cache is None:
        return Known(cache_is_off=True)
    store = open_cache(cache)
    found = store.lookup(computed_keys(nodes), on_damage=lambda error: listen(Warned(f"{error}; it counts as a miss")))
    for warning in store.warnings():
        listen(Warned(warning))
    tensors = frozenset(key for key, entry in found.items() if entry.kind == "tensor")
    return Known(tensors, records={key: None for key, entry in found.items() if entry.kind == "record"})


def read_records(graph: Graph, wanted: Sequence[Target], known: Known, cache: Where | None, listen: Listener) -> Known:
    """The same with the values of the statistics a run needs. A damaged one is dropped, with a warning."""
    if cache is None:
        return known
    store = open_cache(cache)
    while True:
        keys = _needed_records(graph, wanted, known)
        store.fetch(keys)
        records = dict(known.records)
        damaged = []
        for key in keys:
            try:
                records[key] = store.read_record(key)
            except CorruptEntry as error:
                tell_dropped(store, error, listen)
                store.discard(key)
                damaged.append(key)
        for key in damaged:
            del records[key]
        known = Known(known.tensors, known.cache_is_off, records)
        if not damaged:  # else what the damaged ones depend on is needed too
            return known


def tell_dropped(store: Cache, error: CorruptEntry, listen: Listener) -> None:
    """Warn of an entry that cannot be used; where it is the whole store that fails, of that, once."""
    for warning in store.warnings() if isinstance(error, LostEntry) else [f"{error}; it is computed again"]:
        listen(Warned(warning))


def _needed_records(graph: Graph, wanted: Sequence[Target], known: Known) -> list[str]:
    nodes = [graph[i] for i in needed_nodes(graph, (target.node for target in wanted), known)]
    return [
        node.key for node in nodes if node.kind == "statistic" and node.key is not None and node.key in known.records
    ]
