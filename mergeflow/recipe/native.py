"""The native form: names for checkpoints, variables, many steps, several outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mergeflow.errors import Position
from mergeflow.recipe.adapted import adapted_steps, is_written
from mergeflow.recipe.cycles import find_cycles, reached, report_cycles, unread
from mergeflow.recipe.fields import NATIVE_FIELDS, read_fields, read_named
from mergeflow.recipe.findings import Findings
from mergeflow.recipe.made_of import StepPlace
from mergeflow.recipe.nearest import quoted
from mergeflow.recipe.nodes import BrokenNode, Entry, MapNode, ScalarNode, is_null, join, kind_of, positions
from mergeflow.recipe.outputs import read_outputs
from mergeflow.recipe.records import ModelReference, Output, Step, StepReference, Variable
from mergeflow.recipe.references import read_reference
from mergeflow.recipe.sources import Names
from mergeflow.recipe.steps import WHAT_A_STEP_IS, read_step
from mergeflow.recipe.sweep import Chosen, in_own_folders, report_unused
from mergeflow.recipe.variables import NAME, NAME_RULE, read_variables, warn_of_unused

VERSION = 1
LARGEST_SEED = 2**64 - 1


@dataclass(frozen=True, slots=True)
class NativeRecipe:
    """What a native recipe says; the fields are those of `Recipe`."""

    steps: tuple[Step, ...]
    outputs: tuple[Output, ...]
    models: Mapping[str, ModelReference]
    variables: Mapping[str, Variable]
    seed: int
    positions: Mapping[str, Position]


def read_native(
    root: MapNode, overrides: Mapping[str, str], folder: Path, findings: Findings, chosen: Chosen
) -> NativeRecipe:
    """Reads every part of a native recipe; `folder` is where its paths start.

    Args:
        chosen: the values of its swept variables.
    """
    fields = read_fields(root, NATIVE_FIELDS, "", findings)
    _check_version(root, fields, findings)
    vars_node = fields["vars"].node if "vars" in fields else None
    variables = read_variables(vars_node, overrides, findings, chosen.given)
    filled = {
        name: Entry(entry.key, entry.key_position, variables.fill(entry.node, name))
        for name, entry in fields.items()
        if name not in ("vars", "sweep")
    }
    warn_of_unused(variables, vars_node, findings)
    declared = {entry.key for entry in vars_node.entries} if isinstance(vars_node, MapNode) else set()
    report_unused(chosen, variables, declared, findings)
    models = _read_models(filled, findings)
    step_entries = _read_step_entries(root, filled, models, findings)
    names = Names({entry.key: entry.key_position for entry in step_entries}, models, folder)
    written = _read_steps(step_entries, names, findings)
    steps = (*written, *adapted_steps(names))
    cycles = find_cycles(steps, findings.guesses)
    report_cycles(steps, cycles, findings)
    # A step that could not be read may use any of the others: nothing is concluded from its silence.
    sound = len(written) == len(names.steps) and not cycles and names.steps.keys().isdisjoint(models)
    outputs = _read_outputs(filled, steps, names, sound, findings)
    whole = {name: reference for name, reference in models.items() if reference is not None}
    places = positions(filled["models"].node) if "models" in filled else {}
    return NativeRecipe(
        steps=steps,
        outputs=in_own_folders(outputs, chosen, variables, fields["outputs"].node if "outputs" in fields else None),
        models=whole,
        variables=variables.plain(),
        seed=_read_seed(filled, findings),
        positions={name: places[name] for name in whole},
    )


def _check_version(root: MapNode, fields: Mapping[str, Entry], findings: Findings) -> None:
    if "mergeflow" not in fields:
        message = f"a recipe with steps starts with 'mergeflow: {VERSION}'"
        findings.error(message, root.position)
        return
    node = fields["mergeflow"].node
    if not isinstance(node, ScalarNode) or isinstance(node.value, bool) or node.value != VERSION:
        found = node.text if isinstance(node, ScalarNode) else kind_of(node)
        findings.error(f"this version reads 'mergeflow: {VERSION}', not {quoted(found)}", node.position, "mergeflow")


def _read_seed(fields: Mapping[str, Entry], findings: Findings) -> int:
    if "seed" not in fields:
        return 0
    node = fields["seed"].node
    if isinstance(node, ScalarNode) and type(node.value) is int and 0 <= node.value <= LARGEST_SEED:
        return node.value
    if not isinstance(node, BrokenNode):
        findings.error("a seed is an integer from 0 to 2**64 - 1", node.position, "seed")
    return 0


def _read_models(fields: Mapping[str, Entry], findings: Findings) -> dict[str, ModelReference | None]:
    models: dict[str, ModelReference | None] = {}
    for entry in read_named(fields["models"].node, "models", findings) if "models" in fields else ():
        path = join("models", entry.key)
        if not _is_name(entry, path, findings):
            continue
        if is_null(entry.node):
            findings.error("no value: write a folder or a hub id", entry.key_position, path)
            models[entry.key] = None
        else:
            models[entry.key] = read_reference(entry.node, path, findings)
    return models


def _is_name(entry: Entry, path: str, findings: Findings) -> bool:
    if NAME.fullmatch(entry.key):
        return True
    message = f"{quoted(entry.key)} cannot be a name: {NAME_RULE}"
    findings.error(message, entry.key_position, path)
    return False


def _read_step_entries(
    root: MapNode, fields: Mapping[str, Entry], models: Mapping[str, ModelReference | None], findings: Findings
) -> tuple[Entry, ...]:
    """The entries of `steps` that have a name of their own."""
    if "steps" not in fields:
        findings.error("'steps' is missing: a recipe has at least one step", root.position)
        return ()
    node = fields["steps"].node
    entries = read_named(node, "steps", findings)
    if isinstance(node, MapNode) and not entries:
        findings.error("'steps' is empty: a recipe has at least one step", node.position, "steps")
    named = tuple(entry for entry in entries if _is_name(entry, join("steps", entry.key), findings))
    for entry in named:
        if entry.key in models:
            message = f"{quoted(entry.key)} is already a name under 'models': a step needs its own"
            findings.error(message, entry.key_position, join("steps", entry.key))
    return named


def _read_steps(entries: tuple[Entry, ...], names: Names, findings: Findings) -> tuple[Step, ...]:
    steps = []
    for entry in entries:
        path = join("steps", entry.key)
        if is_null(entry.node):
            findings.error(f"the step is empty: it needs {WHAT_A_STEP_IS}", entry.key_position, path)
            continue
        step = read_step(entry.node, StepPlace(entry.key, path, entry.key_position, names), findings)
        if step is not None:
            steps.append(step)
    return tuple(steps)


def _read_outputs(
    fields: Mapping[str, Entry], steps: tuple[Step, ...], names: Names, sound: bool, findings: Findings
) -> tuple[Output, ...]:
    """The outputs as written; without any, the steps that no other step uses.

    `sound` is whether every step could be read: only then is it known which ones are used.
    """
    node = fields["outputs"].node if "outputs" in fields else None
    if node is None or (isinstance(node, MapNode) and not node.entries):
        return tuple(Output(step.name, position=step.position()) for step in unread(steps)) if sound else ()
    outputs = read_outputs(node, names, findings)
    if sound and isinstance(node, MapNode) and len(outputs) == len(node.entries):
        _warn_of_unused_steps(steps, outputs, findings)
    return outputs


def _warn_of_unused_steps(steps: tuple[Step, ...], outputs: tuple[Output, ...], findings: Findings) -> None:
    tokenizers = [output.tokenizer.name for output in outputs if isinstance(output.tokenizer, StepReference)]
    needed = reached(steps, [*(output.step for output in outputs), *tokenizers])
    for step in steps:
        if step.name not in needed and is_written(step):
            message = "no output uses this step: it is not computed"
            findings.warning(message, step.position(), join("steps", step.name))
