"""Opening what a recipe names, and compiling the recipe over it: from headers alone, then from digests."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from mergeflow.errors import CheckpointError, Problem, RecipeError
from mergeflow.execute.events import BytesMoved, Listener, PhaseFinished, PhaseStarted, Warned
from mergeflow.execute.warmup import import_torch_in_background
from mergeflow.graph.compile import compile_recipe
from mergeflow.graph.values import Compiled
from mergeflow.models.digests import DigestMemory
from mergeflow.models.open import open_model
from mergeflow.models.records import Checkpoint, TensorSource
from mergeflow.recipe.records import ModelReference, Recipe
from mergeflow.workflow.options import Options


def compile_from_headers(
    recipe: Recipe, listen: Listener, *, download: bool, planned: Mapping[ModelReference, Checkpoint] | None = None
) -> Compiled:
    """The graph of a recipe, without keys, and every problem there is: the recipe's, the models', the steps'.

    Args:
        download: bring hub models to this machine; otherwise their headers are enough.
        planned: the models as they were opened before: a branch of the hub that moved since does not matter.
    """
    checkpoints: dict[ModelReference, Checkpoint] = {}
    problems = list(recipe.problems)
    for reference, path in _references(recipe):
        try:
            before = (planned or {}).get(reference)
            pinned = replace(reference, revision=before.revision) if before and before.revision else reference
            checkpoints[reference] = _open(pinned, recipe, listen, download=download)
        except CheckpointError as error:
            step_name, _, field = path.partition(".")
            problems.append(Problem(str(error), recipe.step(step_name).position(field), f"steps.{path}"))
    compiled = compile_recipe(recipe, checkpoints)
    return replace(compiled, problems=in_file_order([*problems, *compiled.problems]))


def compile_with_digests(
    recipe: Recipe, from_headers: Compiled, options: Options, listen: Listener, *, read_weights: bool
) -> Compiled:
    """The same graph with keys, as far as the digests of its inputs are known.

    Args:
        read_weights: hash tensors that this machine has not hashed before; otherwise they stay without a key.
    """
    memory = DigestMemory(options.state / "digests.sqlite")
    sources = [node.source for node in from_headers.graph if node.source is not None]
    known = dict(memory.known(sources))
    unknown = [source for source in sources if source not in known]
    if unknown and read_weights:
        import_torch_in_background()
        known |= _hash(memory, unknown, options, listen)
    compiled = compile_recipe(recipe, from_headers.checkpoints, known)
    earlier = [problem for problem in from_headers.problems if problem not in compiled.problems]
    return replace(compiled, problems=in_file_order([*earlier, *compiled.problems]))


def check(compiled: Compiled, *, strict: bool) -> tuple[str, ...]:
    """The warnings of a recipe; raises RecipeError with every problem when one of them is an error."""
    errors = [problem for problem in compiled.problems if problem.severity == "error" or strict]
    if errors:
        raise RecipeError(compiled.problems)
    return tuple(str(problem) for problem in compiled.problems)


def in_file_order(problems: list[Problem]) -> tuple[Problem, ...]:
    """Each problem once, sorted by where it stands; those that stand nowhere come last."""
    unique = dict.fromkeys(problems)
    return tuple(sorted(unique, key=lambda p: (p.position is None, p.position.line if p.position else 0)))


def _hash(
    memory: DigestMemory, sources: list[TensorSource], options: Options, listen: Listener
) -> Mapping[TensorSource, str]:
    began = time.perf_counter()
    listen(PhaseStarted("digest", sum(source.nbytes for source in sources), len(sources)))
    digests = memory.compute(sources, options.workers, lambda count: listen(BytesMoved(read=count)))
    listen(PhaseFinished("digest", time.perf_counter() - began))
    return digests


def _open(reference: ModelReference, recipe: Recipe, listen: Listener, *, download: bool) -> Checkpoint:
    folders = [recipe.folder] + ([recipe.fallback_folder] if recipe.fallback_folder else [])
    return open_model(
        reference,
        [Path(folder) for folder in folders],
        download=download,
        on_bytes=lambda n: listen(BytesMoved(read=n)),
    )


def _references(recipe: Recipe) -> Iterator[tuple[ModelReference, str]]:
    """Every model of a recipe once, and the path of the field that names it first."""
    seen: set[ModelReference] = set()
    for step in recipe.steps:
        named = [(entry.source, f"models[{i}].model") for i, entry in enumerate(step.inputs)]
        named += [(step.base, "base_model")] if step.base is not None else []
        for source, field in named:
            if isinstance(source, ModelReference) and source not in seen:
                seen.add(source)
                yield source, f"{step.name}.{field}"
    for output in recipe.outputs:
        if isinstance(output.tokenizer, ModelReference) and output.tokenizer not in seen:
            seen.add(output.tokenizer)
            yield output.tokenizer, f"{output.step}.tokenizer"


def warn_all(warnings: tuple[str, ...], listen: Listener) -> None:
    """Say every warning once."""
    for warning in warnings:
        listen(Warned(warning))
