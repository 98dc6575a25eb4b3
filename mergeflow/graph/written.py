"""What a step says, as text: each setting by the path at which a user would point.

    models[0].parameters.density -> 0.5        slices[1].sources[0].layer_range -> [4, 8]       merge_method -> ties

A setting is as it was read; a value that it resolved to is as one would write it, numbers in the shortest form that
reads back the same.
"""

from __future__ import annotations

from collections.abc import Iterator

from mergeflow.recipe.nodes import join
from mergeflow.recipe.places import all_parameters, merged_sources
from mergeflow.recipe.records import ModelToken, Setting, Step, TokenRow, Vocabulary

UNSET = "(unset)"


def written_settings(step: Step) -> dict[str, str]:
    """Every setting of a step that is written out, by its path in the step."""
    return dict(_settings(step))


def _settings(step: Step) -> Iterator[tuple[str, str]]:
    yield "merge_method", step.merge_method
    for source, path in merged_sources(step):
        yield path, str(source)
    yield from _layer_ranges(step)
    for parameters, path in all_parameters(step):
        for name, setting in parameters.items():
            yield f"{path}.{name}", setting_text(setting)
    if step.dtype:
        yield "dtype", step.dtype
    if step.out_dtype:
        yield "out_dtype", step.out_dtype
    if step.vocabulary is not None:
        path = "tokenizer_source" if "tokenizer_source" in step.positions else "tokenizer.source"
        yield path, str(step.vocabulary.source)
        yield from _vocabulary(step.vocabulary)


def _layer_ranges(step: Step) -> Iterator[tuple[str, str]]:
    parts = [("", step.slices), *((join("modules", module.name), module.slices) for module in step.modules)]
    for path, slices in parts:
        for number, part in enumerate(slices):
            for index, entry in enumerate(part.inputs):
                if entry.layers is not None:
                    yield join(path, f"slices[{number}].sources[{index}].layer_range"), str(list(entry.layers))


def _vocabulary(vocabulary: Vocabulary) -> Iterator[tuple[str, str]]:
    if vocabulary.pad_to_multiple_of is not None:
        yield "tokenizer.pad_to_multiple_of", str(vocabulary.pad_to_multiple_of)
    for token, row in vocabulary.tokens.items():
        yield f"tokenizer.tokens.{token}", _row_text(row)


def _row_text(row: TokenRow) -> str:
    source = row.source
    if isinstance(source, ModelToken):
        text = f"{source.token if source.token is not None else source.token_id} of {source.model}"
    else:
        text = "as any other" if source is None else str(source)
    return f"{text}, forced" if row.force else text


def setting_text(setting: Setting) -> str:
    """A setting on one line, as one would write it in a recipe."""
    values = []
    for branch in setting.branches:
        text = _as_read(branch.value)
        values.append(f"{branch.filter}: {text}" if branch.filter is not None else text)
    return values[0] if len(values) == 1 else "{" + ", ".join(values) + "}"


def _as_read(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_as_read(item) for item in value) + "]"
    return value_text(value) if isinstance(value, bool) else str(value)


def value_text(value: object) -> str:
    """A value as one would write it: ``0.5``, ``1``, ``true``, ``[0, 0.5, 1]``."""
    if value is None:
        return UNSET
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, tuple | list):
        return "[" + ", ".join(value_text(item) for item in value) + "]"
    return str(value)
