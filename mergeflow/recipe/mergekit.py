"""mergekit's form: one merge, or several in one file, each a document, as a recipe of as many steps.

    name: halfway                             a document with a name is a step of that name
    merge_method: linear
    models: [{model: ./a}, {model: ./b}]
    ---                                       the one without a name is the final merge
    merge_method: slerp
    models: [{model: halfway}, {model: ./c}]
    parameters: {t: 0.3}

It must run as it runs in mergekit: what mergekit ignores is a warning here. There are no variables. In a file of one
document every name means a checkpoint; in one of several, the name of another document, wherever a model may stand and
in either direction, means its result, which is never written unless nobody else reads it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import count
from pathlib import Path

from mergeflow.errors import Position
from mergeflow.recipe.adapted import adapted_steps
from mergeflow.recipe.cycles import find_cycles, report_cycles, unread
from mergeflow.recipe.document import document_path
from mergeflow.recipe.findings import Findings
from mergeflow.recipe.made_of import StepPlace
from mergeflow.recipe.nearest import quoted
from mergeflow.recipe.nodes import MapNode, ScalarNode, is_empty, join, shown
from mergeflow.recipe.records import Output, Step
from mergeflow.recipe.sources import Names
from mergeflow.recipe.steps import read_step
from mergeflow.recipe.variables import NAME, NAME_RULE

STEP_NAME = "merge"


def read_mergekit(
    roots: Sequence[MapNode], overrides: Mapping[str, str], folder: Path, findings: Findings
) -> tuple[tuple[Step, ...], tuple[Output, ...]]:
    """The steps and the outputs of a mergekit file; no outputs when a step cannot be read."""
    for name, text in overrides.items():
        given = quoted(f"{name}={text}")
        findings.error(f"--set {given}: a mergekit file has no variables (a native recipe has 'vars:')", None)
    named = _names(roots, findings)
    final = _final_name(named)
    own = [final if name is None else name for name in named]
    places = {name: root.position for name, root in zip(named, roots, strict=True) if name is not None}
    names = Names(places, {}, folder) if len(roots) > 1 else None
    paths = [document_path(index) if len(roots) > 1 else "" for index in range(len(roots))]
    read = [
        read_step(root, StepPlace(name, path, root.position, names), findings)
        for root, name, path in zip(roots, own, paths, strict=True)
    ]
    written = [step for step in read if step is not None]
    steps = (*written, *(adapted_steps(names) if names is not None else ()))
    cycles = find_cycles(steps)
    report_cycles(steps, cycles, findings)
    is_sound = len(written) == len(roots) == len(set(own)) and not cycles
    return steps, _outputs(steps, final) if is_sound else ()


def _outputs(steps: tuple[Step, ...], final: str) -> tuple[Output, ...]:
    """The final merge, and the others that nobody reads."""
    written = sorted(unread(steps), key=lambda step: step.name != final)
    return tuple(Output(step.name, position=step.position()) for step in written)


def _names(roots: Sequence[MapNode], findings: Findings) -> list[str | None]:
    """The name of each document, None for the final one; what is wrong with them is reported."""
    names: list[str | None] = []
    first: dict[str | None, Position] = {}
    for index, root in enumerate(roots):
        path = document_path(index) if len(roots) > 1 else ""
        name, position = _name(root, path, findings)
        if name in first:
            line = f"line {first[name].line}"
            message = (
                f"two documents have no name: only the final one may have none (the other starts in {line})"
                if name is None
                else f"the name {quoted(name)} is given twice (first in {line}): each document needs its own"
            )
            findings.error(message, position, path if name is None else join(path, "name"))
        first.setdefault(name, position)
        names.append(name)
    return names


def _name(root: MapNode, path: str, findings: Findings) -> tuple[str | None, Position]:
    """The name of one document and where it stands."""
    entry = root.entry("name")
    if entry is None or is_empty(entry.node):
        return None, root.position
    node = entry.node
    if isinstance(node, ScalarNode) and NAME.fullmatch(node.text):
        return node.text, node.position
    findings.error(f"{shown(node)} cannot be a name: {NAME_RULE}", node.position, join(path, "name"))
    # It has a name, though none that can be used: it is not the final one.
    return f"document {node.position.line}", node.position


def _final_name(names: Collection[str | None]) -> str:
    """What the document without a name is called here."""
    others = (f"{STEP_NAME}_{number}" for number in count(2))
    return STEP_NAME if STEP_NAME not in names else next(name for name in others if name not in names)
