"""mergekit's form: one merge of whole models, as a recipe of one step.

It must run as it runs in mergekit: what mergekit ignores is a warning here, and what this version cannot do is one
clear error, never a silent difference. Names mean checkpoints only; there are no variables.
"""

from __future__ import annotations

from collections.abc import Mapping

from mergeflow.recipe.findings import Findings
from mergeflow.recipe.nearest import quoted
from mergeflow.recipe.nodes import MapNode
from mergeflow.recipe.records import Output, Step
from mergeflow.recipe.steps import StepPlace, read_step

STEP_NAME = "merge"


def read_mergekit(
    root: MapNode, overrides: Mapping[str, str], findings: Findings
) -> tuple[tuple[Step, ...], tuple[Output, ...]]:
    """The step and the output of a mergekit file; none of both when the step cannot be read."""
    for name, text in overrides.items():
        given = quoted(f"{name}={text}")
        findings.error(f"--set {given}: a mergekit file has no variables (a native recipe has 'vars:')", None)
    place = StepPlace(STEP_NAME, "", root.position, None)
    step = read_step(root, place, findings)
    if step is None:
        return (), ()
    return (step,), (Output(STEP_NAME, position=step.position()),)
