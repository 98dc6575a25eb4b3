"""A recipe as text: what was understood, with every name, reference and default in its place."""

from __future__ import annotations

from collections.abc import Iterator

from mergeflow.recipe.nearest import quoted
from mergeflow.recipe.records import (
    Branch,
    Input,
    ModelToken,
    Output,
    Parameters,
    Recipe,
    Scalar,
    Setting,
    Slice,
    Step,
    TokenRow,
    Vocabulary,
)


def describe(recipe: Recipe) -> str:
    """Several lines on what a recipe says, for people; problems are not part of it."""
    lines = [f"{recipe.file} ({recipe.form} form, seed {recipe.seed})"]
    lines += [f"  model {name} = {reference}" for name, reference in recipe.models.items()]
    lines += [f"  variable {name} = {_value(value)}" for name, value in recipe.variables.items()]
    for step in recipe.steps:
        lines += describe_step(step)
    lines += [_output(output) for output in recipe.outputs]
    return "\n".join(lines)


def describe_step(step: Step) -> list[str]:
    """Several lines on what a step says, without its places in the file."""
    return list(_step(step))


def _step(step: Step) -> Iterator[str]:
    base = f", base {step.base}" if step.base is not None else ""
    dtype = f", {step.dtype}" if step.dtype else ""
    dtype += f", written as {step.out_dtype}" if step.out_dtype else ""
    yield f"  step {step.name} = {step.merge_method}{base}{dtype}"
    yield from _made_of(step.inputs, step.slices, "    ")
    for module in step.modules:
        yield f"    module {module.name}{_parameters(module.parameters)}"
        yield from _made_of(module.inputs, module.slices, "      ")
    if step.parameters:
        yield f"    all{_parameters(step.parameters)}"
    if step.vocabulary is not None:
        yield f"    vocabulary {_vocabulary(step.vocabulary)}"
    if step.chat_template is not None:
        yield f"    chat template {quoted(step.chat_template)}"


def _made_of(inputs: tuple[Input, ...], slices: tuple[Slice, ...], indent: str) -> Iterator[str]:
    for entry in inputs:
        yield f"{indent}{entry.source}{_parameters(entry.parameters)}"
    for part in slices:
        base = f", base {part.base}" if part.base is not None else ""
        yield f"{indent}slice{base}{_parameters(part.parameters)}"
        for entry in part.inputs:
            first, behind = entry.layers or (0, 0)
            yield f"{indent}  {entry.source} [{first}, {behind}){_parameters(entry.parameters)}"


def _vocabulary(vocabulary: Vocabulary) -> str:
    parts = [str(vocabulary.source)]
    parts += [f"{quoted(token)}: {_row(row)}" for token, row in vocabulary.tokens.items()]
    if vocabulary.pad_to_multiple_of is not None:
        parts.append(f"padded to a multiple of {vocabulary.pad_to_multiple_of}")
    return ", ".join(parts)


def _row(row: TokenRow) -> str:
    match row.source:
        case None:
            text = "as any other"
        case ModelToken(model=model, token=token, token_id=number):
            text = f"{quoted(token) if token is not None else number} of {model}"
        case source:
            text = str(source)
    return text + (" in every model" if row.force else "")


def _parameters(parameters: Parameters) -> str:
    return "".join(f" {name}={_setting(setting)}" for name, setting in parameters.items())


def _setting(setting: Setting) -> str:
    return "; ".join(_branch(branch) for branch in setting.branches)


def _branch(branch: Branch) -> str:
    where = f" where {branch.filter!r}" if branch.filter is not None else ""
    return f"{_value(branch.value)}{where}"


def _value(value: Scalar | tuple[Scalar, ...]) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else str(value)


def _output(output: Output) -> str:
    return f"  output {output.step} -> {output.path or '(given on the command line)'}"
