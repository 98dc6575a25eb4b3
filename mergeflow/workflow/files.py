"""What stands beside the weights of an output: the donor's files, its config and a model card.

A delta has no donor: with a config or a tokenizer beside it, it would be taken for a model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mergeflow import __version__
from mergeflow.graph.values import Compiled, CompiledOutput
from mergeflow.methods.registry import find_method
from mergeflow.models.records import Checkpoint
from mergeflow.output.card import Card, CardModel, CardStep, agreed_license, delta_card, license_of, model_card
from mergeflow.output.files import DonorFiles, NewFile, donor_files, library_name
from mergeflow.output.lineage import LockedAdapter
from mergeflow.output.text import json_text, text_bytes
from mergeflow.output.tokenizer import tokenizer_files, with_chat_template, with_generation_ids
from mergeflow.recipe.places import merged_sources
from mergeflow.recipe.records import ModelReference, Recipe, Step, StepReference
from mergeflow.workflow.configuration import output_config
from mergeflow.workflow.destination import Destination
from mergeflow.workflow.locking import locked_adapters, used_models, used_steps, variables


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
    if destination.compiled.type == "delta":
        return [NewFile("README.md", text_bytes(delta_card(_card(recipe, compiled, destination))))]
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


def _card(recipe: Recipe, compiled: Compiled, destination: Destination) -> Card:
    tensors, output = destination.compiled.tensors, destination.compiled.output
    donor = destination.compiled.donor
    models = used_models(recipe, compiled, output)
    agreed = agreed_license([license_of(_readme(model), model.config) for model in models.values()])
    return Card(
        title=destination.path.name if destination.path else destination.step,
        models=tuple(_card_models(recipe, models)),
        steps=tuple(_card_step(recipe, step) for step in used_steps(recipe, output)),
        recipe=recipe.text,
        version=__version__,
        library=library_name(donor.files) if donor.config else None,
        license=agreed.word if agreed else None,
        license_name=agreed.name if agreed else None,
        license_link=agreed.link if agreed else None,
        settings=variables(recipe),
        tensors=len(tensors),
        parameters=sum(math.prod(tensor.shape) for tensor in tensors),
        bytes=sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in tensors),
    )


def _card_models(recipe: Recipe, models: Mapping[ModelReference, Checkpoint]) -> Iterator[CardModel]:
    """Every model, and every adapter that is added to one."""
    adapters: list[LockedAdapter] = []
    for reference, model in models.items():
        adapters += locked_adapters(reference, model)
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


def _readme(model: Checkpoint) -> str | None:
    if model.folder is None or "README.md" not in model.files:
        return None
    try:
        return (model.folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
