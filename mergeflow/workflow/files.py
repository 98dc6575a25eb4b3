"""What stands beside the weights of an output: the donor's files, its config, a model card and the lock."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from mergeflow import __version__
from mergeflow.graph.formula import short
from mergeflow.graph.history import setting_text
from mergeflow.graph.keys import combined_key
from mergeflow.graph.values import Compiled
from mergeflow.methods.registry import find_method
from mergeflow.models.records import Checkpoint
from mergeflow.output.card import Card, CardModel, CardStep, agreed_license, model_card
from mergeflow.output.config import config_json, merged_config
from mergeflow.output.files import DonorFiles, NewFile, donor_files, library_name
from mergeflow.output.lock import Lock, LockedModel
from mergeflow.output.publish import text_bytes
from mergeflow.recipe.records import ModelReference, Recipe, Step, StepReference
from mergeflow.workflow.destination import Destination


def donated_files(destination: Destination) -> DonorFiles:
    """What becomes of each file of the donor."""
    donor, tokenizer = destination.compiled.donor, destination.compiled.tokenizer
    other = (tokenizer.folder, tokenizer.files) if tokenizer is not None and tokenizer.folder is not None else None
    assert donor.folder is not None  # a run has brought every model to this machine
    return donor_files(donor.folder, donor.files, other)


def new_files(recipe: Recipe, compiled: Compiled, destination: Destination) -> list[NewFile]:
    """Every file of an output that is neither shard, index nor lock."""
    donor = destination.compiled.donor
    files = list(donated_files(destination).copied)
    if donor.config:
        config = config_json(merged_config(donor.config, destination.compiled.dtype))
        files.append(NewFile("config.json", text_bytes(config)))
    files.append(NewFile("README.md", text_bytes(model_card(_card(recipe, compiled, destination)))))
    return files


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
    inputs = [
        " ".join([str(entry.source), *(f"{name}={setting_text(s)}" for name, s in entry.parameters.items())])
        for entry in step.inputs
    ]
    settings = [f"{name}={setting_text(setting)}" for name, setting in step.parameters.items()]
    base = [f"base={step.base}"] if step.base is not None else []
    formats = [f"{name}={value}" for name, value in (("dtype", step.dtype), ("out_dtype", step.out_dtype)) if value]
    return f"{step.merge_method}({', '.join([*inputs, *base, *settings, *formats])})"


def _variables(recipe: Recipe) -> dict[str, bool | int | float | str]:
    """The variables as one would give them to ``--set``: a list is the text of one."""
    return {
        name: "[" + ", ".join(map(short, value)) + "]" if isinstance(value, tuple) else value
        for name, value in recipe.variables.items()
    }


def _locked(reference: ModelReference, compiled: Compiled) -> LockedModel:
    checkpoint = compiled.checkpoints[reference]
    digests = {
        name: key
        for name, source in checkpoint.tensors.items()
        if (key := compiled.graph[compiled.graph.load(source)].key) is not None
    }
    combined = combined_key([item for pair in sorted(digests.items()) for item in pair])
    return LockedModel(reference.path, checkpoint.revision, combined, digests)


def _card(recipe: Recipe, compiled: Compiled, destination: Destination) -> Card:
    tensors = destination.compiled.tensors
    donor = destination.compiled.donor
    return Card(
        title=destination.path.name if destination.path else destination.step,
        models=tuple(_card_model(recipe, reference, model) for reference, model in compiled.checkpoints.items()),
        steps=tuple(_card_step(recipe, step) for step in _used_steps(recipe, destination.step)),
        recipe=recipe.text,
        version=__version__,
        library=library_name(donor.files),
        license=agreed_license([_readme(model) for model in compiled.checkpoints.values()]),
        settings=_variables(recipe),
        tensors=len(tensors),
        parameters=sum(math.prod(tensor.shape) for tensor in tensors),
        bytes=sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in tensors),
    )


def _card_model(recipe: Recipe, reference: ModelReference, model: Checkpoint) -> CardModel:
    aliases = [alias for alias, named in recipe.models.items() if named == reference]
    label = aliases[0] if aliases else Path(reference.path).name
    hub_id = reference.path if model.revision is not None else None
    return CardModel(label, reference.path, hub_id, model.revision)


def _card_step(recipe: Recipe, step: Step) -> CardStep:
    method = find_method(step.merge_method)
    assert method is not None  # the step was compiled
    names = {reference: alias for alias, reference in recipe.models.items()}

    def name(source: ModelReference | StepReference) -> str:
        return names.get(source, str(source)) if isinstance(source, ModelReference) else source.name

    inputs = tuple(name(entry.source) for entry in step.inputs)
    return CardStep(step.name, method.title, inputs, name(step.base) if step.base is not None else None, method.paper)


def _used_steps(recipe: Recipe, last: str) -> Iterator[Step]:
    """The steps an output depends on, in the order of the recipe."""
    used: set[str] = set()
    waiting = [last]
    while waiting:
        step = recipe.step(waiting.pop())
        if step.name not in used:
            used.add(step.name)
            waiting += [source.name for source in step.sources() if isinstance(source, StepReference)]
    yield from (step for step in recipe.steps if step.name in used)


def _readme(model: Checkpoint) -> str | None:
    if model.folder is None or "README.md" not in model.files:
        return None
    try:
        return (model.folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
