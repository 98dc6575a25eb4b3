"""Where a step names what it reads: each source with the path of the field that names it.

models[0].model                     base_model                    slices[0].sources[1].model
modules.text.models[0].model        slices[0].base_model          tokenizer.tokens.<|im_start|>.source
"""

from __future__ import annotations

from collections.abc import Iterator

from mergeflow.recipe.nodes import join
from mergeflow.recipe.records import Input, ModelToken, Parameters, Slice, Source, Step, Vocabulary


def merged_sources(step: Step) -> Iterator[tuple[Source, str]]:
    """What a step merges: its inputs as they are listed, then the step's base; each as often as it is named."""
    yield from _made_of(step.inputs, step.slices, "")
    for module in step.modules:
        yield from _made_of(module.inputs, module.slices, join("modules", module.name))
    if step.base is not None:
        yield step.base, "base_model"


def named_sources(step: Step) -> Iterator[tuple[Source, str]]:
    """What a step merges, then the models that its vocabulary names."""
    yield from merged_sources(step)
    if step.vocabulary is not None:
        yield from _of_vocabulary(step.vocabulary, step)


def all_parameters(step: Step) -> Iterator[tuple[Parameters, str]]:
    """Every `parameters` mapping of a step with its path."""
    yield from _parameters_of(step.inputs, step.slices, "")
    for module in step.modules:
        path = join("modules", module.name)
        yield from _parameters_of(module.inputs, module.slices, path)
        yield module.parameters, join(path, "parameters")
    yield step.parameters, "parameters"


def _made_of(inputs: tuple[Input, ...], slices: tuple[Slice, ...], path: str) -> Iterator[tuple[Source, str]]:
    for entry, here in _entries(inputs, slices, path):
        yield entry.source, f"{here}.model"
    for index, part in enumerate(slices):
        if part.base is not None:
            yield part.base, join(path, f"slices[{index}].base_model")


def _parameters_of(inputs: tuple[Input, ...], slices: tuple[Slice, ...], path: str) -> Iterator[tuple[Parameters, str]]:
    for entry, here in _entries(inputs, slices, path):
        yield entry.parameters, f"{here}.parameters"
    for index, part in enumerate(slices):
        yield part.parameters, join(path, f"slices[{index}].parameters")


def _entries(inputs: tuple[Input, ...], slices: tuple[Slice, ...], path: str) -> Iterator[tuple[Input, str]]:
    for index, entry in enumerate(inputs):
        yield entry, join(path, f"models[{index}]")
    for number, part in enumerate(slices):
        for index, entry in enumerate(part.inputs):
            yield entry, join(path, f"slices[{number}].sources[{index}]")


def _of_vocabulary(vocabulary: Vocabulary, step: Step) -> Iterator[tuple[Source, str]]:
    if not isinstance(vocabulary.source, str):
        yield vocabulary.source, "tokenizer.source" if "tokenizer" in step.positions else "tokenizer_source"
    for token, row in vocabulary.tokens.items():
        here = join("tokenizer.tokens", token)
        if isinstance(row.source, ModelToken):
            yield row.source.model, f"{here}.source.model"
        elif row.source is not None and not isinstance(row.source, str):
            yield row.source, f"{here}.source"
