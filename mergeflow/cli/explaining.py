"""What `explain` says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rich.markup import escape

from mergeflow.cli.console import stdout
from mergeflow.workflow.explaining import StepExplanation, TensorExplanation


def show_explanation(found: Sequence[TensorExplanation]) -> None:
    """Each tensor with the steps of its making."""
    console = stdout()
    for tensor in found:
        console.print(f"[bold]{escape(tensor.name)}[/]  {tensor.dtype} {list(tensor.shape)}", markup=True)
        for step in tensor.steps:
            console.print(f"  [cyan]{escape(step.step)}[/] = {escape(step.formula)}")
            console.print(f"    {escape(_details(step))}")


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
    if step.why:
        parts.append("since the last run: " + ", ".join(step.why))
    return "; ".join(parts)


def _values(values: object) -> str:
    assert isinstance(values, dict)  # parameters by name
    return ", ".join(
        f"{name}={value:.6g}" if isinstance(value, float) else f"{name}={value}" for name, value in values.items()
    )
