"""What `explain` says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from mergeflow.cli.console import plain, stdout, styled
from mergeflow.graph.formula import short
from mergeflow.workflow.explaining import StepExplanation, TensorExplanation


def show_explanation(found: Sequence[TensorExplanation]) -> None:
    """Each tensor with its formula and the steps of its making."""
    console = stdout()
    for tensor in found:
        console.print(styled((plain(tensor.name), "bold"), f": {plain(tensor.formula)}"))
        console.print(f"  {tensor.dtype} {plain(str(list(tensor.shape)))}, {plain(tensor.state)}")
        for step in tensor.steps:
            console.print(styled("  ", (plain(step.step), "cyan"), f" = {plain(step.formula)}"))
            console.print(f"    {plain(_details(step))}")
            for line in _reasons(step):
                console.print(f"    {plain(line)}")


def explain_json(found: Sequence[TensorExplanation]) -> list[dict[str, object]]:
    """The explanations as plain data."""
    return [asdict(tensor) for tensor in found]


def _details(step: StepExplanation) -> str:
    parts = [step.state]
    if step.statistics:
        parts.append(f"{step.statistics_known} of {step.statistics} statistics known")
    if step.shared:
        parts.append(_values(step.shared))
    parts += [f"{name}: {_values(values)}" for name, values in step.inputs.items()]
    return "; ".join(parts)


def _reasons(step: StepExplanation) -> Iterator[str]:
    """Why the step must run, and each of its statistics that is missing."""
    for reason in step.why:
        yield f"why: {reason}"
    for it in step.missing:
        yield f"{it.formula} to compute: {', '.join(it.why)}"


def _values(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={short(value)}" for name, value in values.items())
