"""What stands beside the weights of an output: the donor's files, its config, a model card and the lock."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from mergeflow import __version__
from mergeflow.graph.formula import short
from mergeflow.graph.history import setting_text
from mergeflow.graph.ingredients import Ingredients, Level, parts_of
from mergeflow.graph.keys import combined_key
from mergeflow.graph.values import Compiled, CompiledOutput
from mergeflow.methods.registry import find_method
from mergeflow.models.records import Checkpoint
from mergeflow.output.card import Card, CardModel, CardStep, agreed_license, license_of, model_card
from mergeflow.output.files import DonorFiles, NewFile, donor_files, library_name
from mergeflow.output.lock import Lock, LockedAdapter, LockedModel
from mergeflow.output.text import json_text, text_bytes
from mergeflow.output.tokenizer import tokenizer_files, with_chat_template, with_generation_ids
from mergeflow.recipe.cycles import reached
from mergeflow.recipe.places import merged_sources
from mergeflow.recipe.records import ModelReference, Recipe, Step, StepReference
from mergeflow.workflow.configuration import output_config
from mergeflow.workflow.destination import Destination


def donated_files(destination: Destination) -> DonorFiles:
    """What becomes of each file of the donor."""
    donor, tokenizer = destination.compiled.donor, destination.compiled.tokenizer
    assert donor.folder is not None  # a run has brought every model to this machine
    other: tuple[Path, Sequence[str]] | None = None
    if destination.compiled.vocabulary is not None:
        other = donor.folder, ()  # the tokenizer's files are ours
    elif tokenizer is not None and tokenizer.folder is not None:
        other = tokenizer.folder, tokenizer.files
    return donor_files(donor.folder, donor.files, other)


def new_files(recipe: Recipe, compiled: Compiled, destination: Destination) -> list[NewFile]:
    """Every file of an output that is neither shard, index nor lock."""
    files = _with_tokenizer(list(donated_files(destination).copied), destination.compiled)
    config = output_config(compiled, destination.compiled)
    if config:
        files.append(NewFile("config.json", text_bytes(json_text(config))))
    files.append(NewFile("README.md", text_bytes(model_card(_card(recipe, compiled, destination)))))
    return files


def _with_tokenizer(copied: list[NewFile], made: CompiledOutput) -> list[NewFile]:
    """The copied files with those of the tokenizer that the output has of its own."""
    if made.vocabulary is not None:
        tokenizer = made.vocabulary.tokenizer
        files = with_generation_ids(copied, made.donor.tokenizer, tokenizer)
        return [*files, *tokenizer_files(tokenizer, made.chat_template)]
    return with_chat_template(copied, made.chat_template) if made.chat_template is not None else copied


def lock_of(recipe: Recipe, compiled: Compiled, destination: Destination) -> Lock:
    """What the output was made of; the publisher adds its shards and files."""
    return Lock(
        version=__version__,
        recipe=recipe.text,
        step=destination.step,
        variables=_variables(recipe),
        models={str(reference): _locked(reference, compiled) for reference in compiled.checkpoints},
        steps={step.name: step_text(step) for step in recipe.steps},
    )


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


def _variables(recipe: Recipe) -> dict[str, bool | int | float | str]:
    """The variables as one would give them to ``--set``: a list is the text of one."""
    return {
        name: "[" + ", ".join(map(short, value)) + "]" if isinstance(value, tuple) else value
        for name, value in recipe.variables.items()
    }


def _locked(reference: ModelReference, compiled: Compiled) -> LockedModel:
    checkpoint = compiled.checkpoints[reference]
    digests = {
        name: key for name, source in checkpoint.tensors.items() if (key := compiled.graph.key(source)) is not None
    }
    combined = combined_key([item for pair in sorted(digests.items()) for item in pair])
    adapters = _locked_adapters(reference, checkpoint)
    return LockedModel(reference.path, checkpoint.revision, combined, digests, adapters)


def _locked_adapters(reference: ModelReference, checkpoint: Checkpoint) -> tuple[LockedAdapter, ...]:
    """The adapters of a model, each with the commit that it was opened at."""
    opened = zip(reference.adapters, checkpoint.adapter_revisions, strict=True)
    return tuple(LockedAdapter(adapter.path, revision, adapter.weight) for adapter, revision in opened)


def _card(recipe: Recipe, compiled: Compiled, destination: Destination) -> Card:
    tensors = destination.compiled.tensors
    donor = destination.compiled.donor
    agreed = agreed_license([license_of(_readme(model), model.config) for model in compiled.checkpoints.values()])
    return Card(
        title=destination.path.name if destination.path else destination.step,
        models=tuple(_card_models(recipe, compiled)),
        steps=tuple(_card_step(recipe, step) for step in _used_steps(recipe, destination.step)),
        recipe=recipe.text,
        version=__version__,
        library=library_name(donor.files) if donor.config else None,
        license=agreed.word if agreed else None,
        license_name=agreed.name if agreed else None,
        license_link=agreed.link if agreed else None,
        settings=_variables(recipe),
        tensors=len(tensors),
        parameters=sum(math.prod(tensor.shape) for tensor in tensors),
        bytes=sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in tensors),
    )


def _card_models(recipe: Recipe, compiled: Compiled) -> Iterator[CardModel]:
    """Every model, and every adapter that is added to one."""
    adapters: list[LockedAdapter] = []
    for reference, model in compiled.checkpoints.items():
        adapters += _locked_adapters(reference, model)
        if not reference.is_adapter:
            yield _card_model(recipe, reference, model)
    for path, revision in dict.fromkeys((adapter.path, adapter.revision) for adapter in adapters):
        yield CardModel(Path(path).name, path, path if revision is not None else None, revision)


def _card_model(recipe: Recipe, reference: ModelReference, model: Checkpoint) -> CardModel:
    aliases = [alias for alias, named in recipe.models.items() if named == reference]
    paths = [reference.path, *(adapter.path for adapter in reference.adapters)]
    label = aliases[0] if aliases else "+".join(Path(path).name for path in paths if path)
    hub_id = reference.path if model.revision is not None else None
    return CardModel(label, reference.path, hub_id, model.revision)


def _card_step(recipe: Recipe, step: Step) -> CardStep:
    method = find_method(step.merge_method)
    assert method is not None  # the step was compiled
    names = {reference: alias for alias, reference in recipe.models.items()}

    def name(source: ModelReference | StepReference) -> str:
        return names.get(source, str(source)) if isinstance(source, ModelReference) else source.name

    listed = [source for source, path in merged_sources(step) if not path.endswith("base_model")]
    inputs = tuple(dict.fromkeys(map(name, listed)))
    return CardStep(step.name, method.title, inputs, name(step.base) if step.base is not None else None, method.paper)


def _used_steps(recipe: Recipe, last: str) -> Iterator[Step]:
    """The steps an output depends on, in the order of the recipe."""
    used = reached(recipe.steps, [last])
    return (step for step in recipe.steps if step.name in used)


def _readme(model: Checkpoint) -> str | None:
    if model.folder is None or "README.md" not in model.files:
        return None
    try:
        return (model.folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
