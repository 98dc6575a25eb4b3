"""A recipe as text: what was understood, with every name, reference and default in its place."""

from __future__ import annotations

from collections.abc import Iterator

from mergeflow.recipe.records import Branch, Output, Parameters, Recipe, Scalar, Setting, Step


def describe(recipe: Recipe) -> str:
    """Several lines on what a recipe says, for people; problems are not part of it."""
    lines = [f"{recipe.file} ({recipe.form} form, seed {recipe.seed})"]
    lines += [f"  model {name} = {reference}" for name, reference in recipe.models.items()]
    lines += [f"  variable {name} = {_value(value)}" for name, value in recipe.variables.items()]
    for step in recipe.steps:
        lines += _step(step)
    lines += [_output(output) for output in recipe.outputs]
    return "\n".join(lines)


def _step(step: Step) -> Iterator[str]:
    base = f", base {step.base}" if step.base is not None else ""
    dtype = f", {step.dtype}" if step.dtype else ""
    yield f"  step {step.name} = {step.merge_method}{base}{dtype}"
    for entry in step.inputs:
        yield f"    {entry.source}{_parameters(entry.parameters)}"
    if step.parameters:
        yield f"    all{_parameters(step.parameters)}"


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
