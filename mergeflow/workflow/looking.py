"""The tensors of any step, in memory: the same programs as a run's, with memory as their destination."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mergeflow.execute.events import Listener
from mergeflow.graph.program import Place
from mergeflow.graph.tasks import Target, form_tasks
from mergeflow.recipe.records import Recipe
from mergeflow.workflow.models import check, compile_from_headers, compile_with_digests
from mergeflow.workflow.options import Options
from mergeflow.workflow.planning import budget, look_up, read_records

if TYPE_CHECKING:
    import torch


def step_tensors(recipe: Recipe, step: str, options: Options, listen: Listener) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of a step's result, computed one at a time."""
    from mergeflow.execute.files import writing
    from mergeflow.execute.records import Settings
    from mergeflow.execute.task import compute_tensor

    stated = recipe.step(step).dtype or recipe.step(step).out_dtype
    compiled = compile_from_headers(recipe, listen, download=True)
    check(compiled, strict=options.strict)
    compiled = compile_with_digests(recipe, compiled, options, listen, read_weights=True)
    check(compiled, strict=options.strict)
    settings = Settings(
        budget=budget(options),
        device="cpu",
        cache=str(options.cache.absolute()) if options.cache else None,
        scratch=str(options.state.absolute()),
        allow_non_finite=True,
    )
    with writing(settings.scratch):
        options.state.mkdir(parents=True, exist_ok=True)
    cached = look_up(compiled, options.cache, listen)
    for name, tensor in compiled.results[step].tensors.items():
        target = Target(tensor.node, name, step, Place("", 0))
        known = read_records(compiled.graph, [target], cached, options.cache, listen)
        program = form_tasks(compiled.graph, [target], known)[0].programs[0]
        value = compute_tensor(program, settings)
        # A tensor that is an input's as it is has that input's dtype: widen it as computing with it would have.
        is_narrow = value.is_floating_point() and value.dtype.itemsize < 4
        yield name, value.float() if is_narrow and not stated else value
