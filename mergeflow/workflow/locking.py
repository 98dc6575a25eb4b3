"""What the lock of an output says of how it was made: its recipe, and the inputs that this step depends on.

Nothing else of the recipe is in it: steps and models that only other outputs need say nothing of this one. So an
output that is exported later has the lock that a run would have written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mergeflow import __version__
from mergeflow.graph.formula import short
from mergeflow.graph.ingredients import Ingredients, Level, parts_of
from mergeflow.graph.keys import combined_key
from mergeflow.graph.values import Compiled, CompiledOutput
from mergeflow.graph.written import setting_text
from mergeflow.models.records import Checkpoint
from mergeflow.output.json_fields import Plain
from mergeflow.output.lineage import LockedAdapter, LockedModel
from mergeflow.output.lock import Lock
from mergeflow.recipe.cycles import reached
from mergeflow.recipe.places import named_sources
from mergeflow.recipe.read import read_recipe
from mergeflow.recipe.records import ModelReference, Output, Recipe, Scalar, Step, StepReference
from mergeflow.workflow.ancestry import lineage_of_input


def lock_of(recipe: Recipe, compiled: Compiled, made: CompiledOutput) -> Lock:
    """What an output was made of; the publisher adds its shards and files."""
    models = used_models(recipe, compiled, made.output)
    return Lock(
        version=__version__,
        recipe=recipe.text,
        step=made.output.step,
        variables=variables(recipe),
        models={str(reference): _locked(reference, compiled) for reference in models},
        steps={step.name: step_text(step) for step in used_steps(recipe, made.output)},
        type=made.type,
        seed=_given_seed(recipe),
    )


def used_steps(recipe: Recipe, output: Output) -> tuple[Step, ...]:
    """The steps an output depends on, in the order of the recipe."""
    tokenizer = [output.tokenizer.name] if isinstance(output.tokenizer, StepReference) else []
    used = reached(recipe.steps, [output.step, *tokenizer])
    return tuple(step for step in recipe.steps if step.name in used)


def used_models(recipe: Recipe, compiled: Compiled, output: Output) -> dict[ModelReference, Checkpoint]:
    """The models that those steps and the output itself name, in the order of the recipe."""
    named = {source for step in used_steps(recipe, output) for source, _ in named_sources(step)}
    named |= {output.tokenizer} if output.tokenizer is not None else set()
    return {reference: checkpoint for reference, checkpoint in compiled.checkpoints.items() if reference in named}


def step_text(step: Step) -> str:
    """A step on one line: its method, inputs and settings."""
    inputs = [text for part in parts_of(step) for ingredients in part.ingredients for text in _inputs(ingredients)]
    settings = [f"{name}={setting_text(setting)}" for name, setting in step.parameters.items()]
    base = [f"base={step.base}"] if step.base is not None else []
    formats = [f"{name}={value}" for name, value in (("dtype", step.dtype), ("out_dtype", step.out_dtype)) if value]
    return f"{step.merge_method}({', '.join([*inputs, *base, *settings, *formats])})"


def _inputs(ingredients: Ingredients) -> Iterator[str]:
    """Each listed input of a merge with its layers and settings; those of its slice and module come last."""
    shared = len(ingredients.levels)
    for entry in ingredients.inputs:
        own = entry.levels[: len(entry.levels) - shared]
        layers = f"[{entry.first}:{entry.first + ingredients.layers}]" if ingredients.layers is not None else ""
        if own:
            yield " ".join([f"{entry.source}{layers}", *_texts(own)])
    between = [
        *([f"base={ingredients.base}"] if ingredients.layers is not None else []),
        *_texts(ingredients.levels[:-1]),
    ]
    if len(ingredients.levels) > 1:
        yield f"{ingredients.path.rpartition('.')[0]}: {' '.join(between)}"


def _texts(levels: Sequence[Level]) -> list[str]:
    return [f"{name}={setting_text(it)}" for level in levels for name, it in level.parameters.items()]


def variables(recipe: Recipe) -> dict[str, Plain]:
    """The variables as one would give them to ``--set``."""
    return {name: variable_text(value) for name, value in recipe.variables.items()}


def variable_text(value: Scalar | tuple[Scalar, ...]) -> Plain:
    """The value of a variable as a lock has it: a list is the text of one."""
    return "[" + ", ".join(map(_exactly, value)) + "]" if isinstance(value, tuple) else value


def _exactly(value: Scalar) -> str:
    """A value as `short` has it, unless a number needs more digits than that: a key depends on every one."""
    return short(value) if not isinstance(value, float) or float(short(value)) == value else repr(value)


def _locked(reference: ModelReference, compiled: Compiled) -> LockedModel:
    checkpoint = compiled.checkpoints[reference]
    digests = {
        name: key for name, source in checkpoint.tensors.items() if (key := compiled.graph.key(source)) is not None
    }
    combined = combined_key([item for pair in sorted(digests.items()) for item in pair])
    adapters = locked_adapters(reference, checkpoint)
    return LockedModel(reference.path, checkpoint.revision, combined, digests, adapters, lineage_of_input(checkpoint))


def locked_adapters(reference: ModelReference, checkpoint: Checkpoint) -> tuple[LockedAdapter, ...]:
    """The adapters of a model, each with the commit that it was opened at."""
    opened = zip(reference.adapters, checkpoint.adapter_revisions, strict=True)
    return tuple(LockedAdapter(adapter.path, revision, adapter.weight) for adapter, revision in opened)


def _given_seed(recipe: Recipe) -> int | None:
    """The seed of the command line; None when the recipe's own holds."""
    stated = read_recipe(recipe.file, text=recipe.text, working_folder=recipe.folder).seed
    return None if recipe.seed == stated else recipe.seed
