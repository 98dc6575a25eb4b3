"""Why must a step run? What it was made of in the last run of the recipe, held against what it is made of now.

The last run leaves a small description of each step: its settings as written, the keys of its input models, the
versions of its operations. It explains, and decides nothing: whether a value is reused depends on its key alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from mergeflow.graph.ingredients import parts_of
from mergeflow.graph.keys import combined_key
from mergeflow.graph.values import Compiled
from mergeflow.methods.ops import OPS
from mergeflow.recipe.places import all_parameters
from mergeflow.recipe.records import Parameters, Recipe, Setting, Step, StepReference

SHOWN = 4


@dataclass(frozen=True, slots=True)
class StepDescription:
    """What a step was made of. `settings` maps a setting's path to its text; `inputs` an input's name to its key."""

    method: str
    settings: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, int] = field(default_factory=dict)


def describe_steps(recipe: Recipe, compiled: Compiled) -> dict[str, StepDescription]:
    """The description of every step that compiled."""
    return {
        step.name: StepDescription(
            method=step.merge_method,
            settings=dict(_settings(step)) | dict(_seed(recipe, step, compiled)) | _own_method(step, compiled),
            inputs=dict(_inputs(step, compiled)),
            versions={op: OPS[op].version for op in sorted(_operations(step, compiled))},
        )
        for step in recipe.steps
        if step.name in compiled.results
    }


def differences(
    name: str,
    now: Mapping[str, StepDescription],
    before: Mapping[str, StepDescription],
    found: dict[str, list[str]] | None = None,
) -> list[str]:
    """What has changed about a step since the last run, a line each; changes of the steps it reads come last.

    Args:
        found: what was found of other steps on the way: a step that many paths lead to is looked at once.
    """
    found = {} if found is None else found
    if name not in found:
        found[name] = _differences(name, now, before, found)
    return found[name]


def _differences(
    name: str,
    now: Mapping[str, StepDescription],
    before: Mapping[str, StepDescription],
    others: dict[str, list[str]],
) -> list[str]:
    if name not in before:
        return ["not run before"]
    new, old = now[name], before[name]
    found: list[str] = []
    if new.method != old.method:
        found.append(f"method {old.method} -> {new.method}")
    found += [f"{path} {a} -> {b}" for path, a, b in _changes(old.settings, new.settings)]
    models = [change for change in _changes(old.inputs, new.inputs) if not change[0].startswith(_STEP)]
    found += [f"model {label} {_what_happened(a, b)}" for label, a, b in models]
    shared = set(old.versions) & set(new.versions)
    found += [
        f"operation {op} is now version {new.versions[op]}"
        for op in sorted(shared)
        if old.versions[op] != new.versions[op]
    ]
    upstream = [
        label
        for label in new.inputs
        if _is_step(label, now) and differences(label.removeprefix(_STEP), now, before, others)
    ]
    found += [f"step {label.removeprefix(_STEP)} changed" for label in upstream]
    more = len(found) - SHOWN
    return [*found[:SHOWN], f"and {more} more changes"] if more > 0 else found


_NONE = "(unset)"
_STEP = "step:"


def _what_happened(old: str, new: str) -> str:
    return "is new" if old == _NONE else "was left out" if new == _NONE else "changed"


def _is_step(label: str, now: Mapping[str, StepDescription]) -> bool:
    return label.startswith(_STEP) and label.removeprefix(_STEP) in now


def _changes(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    for path in dict.fromkeys([*new, *old]):
        a, b = old.get(path, _NONE), new.get(path, _NONE)
        if a != b:
            yield path, a, b


def _settings(step: Step) -> Iterator[tuple[str, str]]:
    yield from _texts("parameters", step.parameters)
    for entry in step.inputs:
        yield from _texts(f"{entry.source}.parameters", entry.parameters)
    if not step.inputs:
        yield from _slices(step)
    yield "dtype", step.dtype or _NONE
    yield "out_dtype", step.out_dtype or _NONE


def _slices(step: Step) -> Iterator[tuple[str, str]]:
    """What each slice or module is made from: its sources with their layers, its base, and what is set there."""
    for part in parts_of(step):
        for ingredients in part.ingredients:
            count = ingredients.layers
            layers = [
                str(entry.source) + ("" if count is None else f"[{entry.first}:{entry.first + count}]")
                for entry in ingredients.inputs
            ]
            yield ingredients.path, ", ".join(layers)
            yield f"{ingredients.path} base", str(ingredients.base)
    for parameters, path in all_parameters(step):
        yield from _texts(path, parameters)


def _seed(recipe: Recipe, step: Step, compiled: Compiled) -> Iterator[tuple[str, str]]:
    """The recipe's seed, of a step that draws random numbers."""
    if any(OPS[op].random for op in _operations(step, compiled)):
        yield "seed", str(recipe.seed)


def _own_method(step: Step, compiled: Compiled) -> dict[str, str]:
    """What a user's method is known by: its version, its package, the digest of its source."""
    for i in compiled.results[step.name].nodes:
        known = compiled.graph[i].parameters.get("method")
        if isinstance(known, Mapping):
            return {f"{known['name']}'s {field}": str(value) for field, value in known.items() if field != "name"}
    return {}


def _texts(path: str, parameters: Parameters) -> Iterator[tuple[str, str]]:
    for name, setting in parameters.items():
        yield f"{path}.{name}", setting_text(setting)


def setting_text(setting: Setting) -> str:
    """A setting on one line, as one would write it in a recipe."""
    values = []
    for branch in setting.branches:
        text = _value_text(branch.value)
        values.append(f"{branch.filter}: {text}" if branch.filter is not None else text)
    return values[0] if len(values) == 1 else "{" + ", ".join(values) + "}"


def _value_text(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_value_text(item) for item in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _inputs(step: Step, compiled: Compiled) -> Iterator[tuple[str, str]]:
    for source in step.sources():
        if isinstance(source, StepReference):
            yield _STEP + source.name, ""
            continue
        checkpoint = compiled.checkpoints[source]
        keys = [compiled.graph.key(tensor) or "" for tensor in checkpoint.tensors.values()]
        yield str(source), combined_key([*checkpoint.tensors, *keys])


def _operations(step: Step, compiled: Compiled) -> set[str]:
    nodes = compiled.results[step.name].nodes
    return {compiled.graph[i].op for i in nodes if compiled.graph[i].kind != "load"}
