"""The tensors of any step, in memory: the same programs as a run's, with memory as their destination."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import replace
from typing import TYPE_CHECKING

from mergeflow.cache.open import open_cache
from mergeflow.cache.place import as_place
from mergeflow.errors import CorruptEntry, RunError
from mergeflow.execute.events import Listener, Warned
from mergeflow.execute.records import Settings
from mergeflow.graph.nodes import Graph
from mergeflow.graph.plan import unkept_nodes
from mergeflow.graph.program import Place
from mergeflow.graph.tasks import Target, form_tasks, tasks_before
from mergeflow.recipe.records import Recipe
from mergeflow.workflow.models import check, compile_from_headers, compile_with_digests
from mergeflow.workflow.options import Options
from mergeflow.workflow.parts import room_for_parts
from mergeflow.workflow.planning import budget, look_up, read_records

if TYPE_CHECKING:
    import torch


def step_tensors(recipe: Recipe, step: str, options: Options, listen: Listener) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of a step's result, computed one at a time."""
    from mergeflow.execute.files import writing

    stated = recipe.step(step).dtype or recipe.step(step).out_dtype
    compiled = compile_from_headers(recipe, listen, download=True, state=options.state)
    check(compiled, strict=options.strict)
    compiled = compile_with_digests(recipe, compiled, options, listen)
    check(compiled, strict=options.strict)
    settings = Settings(
        budget=budget(options),
        device="cpu",
        cache=None if options.cache is None else as_place(options.cache),
        scratch=str(options.state.absolute()),
        allow_non_finite=True,
    )
    with writing(settings.scratch):
        options.state.mkdir(parents=True, exist_ok=True)
    unkept = unkept_nodes(recipe, compiled)
    for name, tensor in compiled.results[step].tensors.items():
        target = Target(tensor.node, name, step, Place("", 0))
        value = _tensor(compiled.graph, target, unkept, options, settings, listen)
        # A tensor that is an input's as it is has that input's dtype: widen it as computing with it would have.
        is_narrow = value.is_floating_point() and value.dtype.itemsize < 4
        yield name, value.float() if is_narrow and not stated else value


def _tensor(
    graph: Graph, target: Target, unkept: Set[int], options: Options, settings: Settings, listen: Listener
) -> torch.Tensor:
    """The value of one target, from what is in the cache now. What turns out damaged is dropped and computed again."""
    from mergeflow.execute.task import compute_tensor, run_task

    nodes = [graph[i] for i in graph.upstream([target.node])]
    damaged: set[str] = set()
    while True:
        known = look_up(nodes, options.cache, listen)
        known = replace(known, tensors=known.tensors - damaged)
        known = read_records(graph, [target], known, options.cache, listen)
        waves, known = tasks_before(graph, [target], known, unkept)
        program = form_tasks(graph, [target], known, unkept)[0].programs[0]
        try:
            with room_for_parts(waves, settings) as with_room:
                for task in (task for wave in waves for task in wave):
                    run_task(task, with_room)
                return compute_tensor(program, with_room)
        except CorruptEntry as error:
            if options.cache is None or error.key in damaged:
                raise RunError(f"{error}; look at the cache's disk, or do without a cache") from error
            listen(Warned(f"{error}; it is computed again"))
            open_cache(options.cache).discard(error.key)
            damaged.add(error.key)
