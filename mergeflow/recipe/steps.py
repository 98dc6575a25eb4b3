"""One step: a merge with mergekit's fields, or one operation on one input, under its own name.

    final:                                   math_skill:
      merge_method: slerp                      task_vector: {model: math, base: base}
      base_model: chat                       thinned:
      models: [{model: chat}, {model: skills}]   sparsify: {delta: math_skill, density: 0.5}
      parameters: {t: 0.5}

A step is returned when its method and each of its sources could be read. Parameters and formats that could not are
left out; their places stay in `Step.positions`, so that later checks know they were written and reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from mergeflow.dtypes import FLOAT_NAMES
from mergeflow.errors import Position
from mergeflow.recipe.fields import (
    INPUT_FIELDS,
    MERGE_FIELDS,
    MISSING_IN_STEPS,
    OPERATIONS,
    STEP_FIELDS,
    OperationForm,
    read_choice,
    read_fields,
    read_list,
    read_text_value,
)
from mergeflow.recipe.findings import Findings
from mergeflow.recipe.nearest import did_you_mean, nearest, quoted
from mergeflow.recipe.nodes import BrokenNode, Entry, ListNode, MapNode, Node, ScalarNode, is_empty, join, positions
from mergeflow.recipe.parameters import read_parameters
from mergeflow.recipe.records import CachePolicy, Input, Parameters, Source, Step
from mergeflow.recipe.sources import Names, read_source

CACHE_POLICIES = ("auto", "always", "never")
# What people call the formats elsewhere; too far from our names for difflib.
SHORT_NAMES = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "fp64": "float64"}
BESIDE_OPERATION = ("dtype", "out_dtype", "cache")
WHAT_A_STEP_IS = f"'merge_method' (or {', '.join(quoted(name) for name in OPERATIONS)})"


@dataclass(frozen=True, slots=True)
class StepPlace:
    """Which step is read: its name, the path of its fields, its place, and what names mean in it.

    `names` is None in a mergekit file: there every name is a checkpoint, and only mergekit's fields are known.
    """

    name: str
    path: str
    position: Position
    names: Names | None


def read_step(node: Node, place: StepPlace, findings: Findings) -> Step | None:
    """The step a mapping describes; None, reported, when its method or a source is missing or unreadable."""
    if isinstance(node, BrokenNode):
        return None
    known = MERGE_FIELDS if place.names is None else STEP_FIELDS
    fields = read_fields(node, known, place.path, findings, MISSING_IN_STEPS)
    if not isinstance(node, MapNode):
        return None
    operation = next((name for name in OPERATIONS if name in fields), None)
    if operation is not None:
        return _read_operation(operation, node, fields, place, findings)
    return _read_merge(node, fields, place, findings)


def _read_merge(node: MapNode, fields: dict[str, Entry], place: StepPlace, findings: Findings) -> Step | None:
    method = _read_method(fields, place, findings)
    inputs = _read_inputs(node, fields, place, findings)
    parameters = _read_parameters(fields, place.path, findings)
    formats = _read_formats(fields, place.path, findings)
    base = None
    if "base_model" in fields:
        base = _read_base(fields["base_model"].node, join(place.path, "base_model"), place, findings)
        if base is None:
            return None
    if method is None or inputs is None:
        return None
    return Step(place.name, method, inputs, base, parameters, *formats, _positions(node, place))


def _read_method(fields: dict[str, Entry], place: StepPlace, findings: Findings) -> str | None:
    if "merge_method" in fields:
        return read_text_value(fields["merge_method"].node, join(place.path, "merge_method"), findings)
    message = "'merge_method' is missing" if place.names is None else f"a step needs {WHAT_A_STEP_IS}"
    findings.error(message, place.position, place.path)
    return None


def _read_inputs(
    node: MapNode, fields: dict[str, Entry], place: StepPlace, findings: Findings
) -> tuple[Input, ...] | None:
    """The entries of `models`; None when one of them has no readable source."""
    if "models" not in fields:
        if not _is_sliced(node):
            findings.error("'models' is missing: a merge lists its models", place.position, place.path)
        return None
    path = join(place.path, "models")
    listed = fields["models"].node
    if isinstance(listed, ListNode) and not listed.items:
        if not _is_sliced(node):
            findings.error("'models' is empty: a merge lists its models", listed.position, path)
        return None
    items = read_list(listed, path, findings)
    inputs = [_read_input(item, f"{path}[{index}]", place, findings) for index, item in enumerate(items)]
    whole = tuple(entry for entry in inputs if entry is not None)
    return whole if whole and len(whole) == len(inputs) else None


def _is_sliced(node: MapNode) -> bool:
    """Whether the models stand where this version does not look: reported as not supported, not as missing."""
    return any(entry.key in ("slices", "modules") and not is_empty(entry.node) for entry in node.entries)


def _read_input(node: Node, path: str, place: StepPlace, findings: Findings) -> Input | None:
    if isinstance(node, BrokenNode):
        return None
    if isinstance(node, ScalarNode) and node.value is not None:
        message = f"expected a mapping with a 'model': write {{model: {node.text}}}"
        findings.error(message, node.position, path)
        source = read_source(node, place.names, path, findings, place.name)
        return None if source is None else Input(source, {}, node.position)
    fields = read_fields(node, INPUT_FIELDS, path, findings)
    parameters = _read_parameters(fields, path, findings)
    if "model" not in fields:
        if isinstance(node, MapNode):
            findings.error("'model' is missing: each entry of 'models' names one", node.position, path)
        return None
    named = fields["model"].node
    source = read_source(named, place.names, join(path, "model"), findings, place.name)
    return None if source is None else Input(source, parameters, named.position)


def _read_base(node: Node, path: str, place: StepPlace, findings: Findings) -> Source | None:
    return read_source(node, place.names, path, findings, place.name)


def _read_parameters(fields: dict[str, Entry], path: str, findings: Findings) -> Parameters:
    if "parameters" not in fields:
        return {}
    return read_parameters(fields["parameters"].node, join(path, "parameters"), findings)


def _read_formats(
    fields: dict[str, Entry], path: str, findings: Findings
) -> tuple[str | None, str | None, CachePolicy]:
    """`dtype`, `out_dtype` and `cache`."""
    dtype, out_dtype = (
        read_dtype(fields[name].node, join(path, name), findings) if name in fields else None
        for name in ("dtype", "out_dtype")
    )
    cache = None
    if "cache" in fields:
        cache = read_choice(fields["cache"].node, CACHE_POLICIES, join(path, "cache"), findings)
    return dtype, out_dtype, cast(CachePolicy, cache or "auto")


def read_dtype(node: Node, path: str, findings: Findings) -> str | None:
    """A float format by its name, ``torch.`` before it or not; None when it is empty or, reported, unknown."""
    text = read_text_value(node, path, findings)
    if not text:
        return None
    name = text.removeprefix("torch.")
    if name in FLOAT_NAMES:
        return name
    meant = SHORT_NAMES.get(name.lower())
    hint = f"; did you mean {quoted(meant)}?" if meant else did_you_mean(name, FLOAT_NAMES, "formats")
    findings.error(f"{quoted(text)} is not a number format for weights{hint}", node.position, path)
    return None


def _read_operation(
    name: str, node: MapNode, fields: dict[str, Entry], place: StepPlace, findings: Findings
) -> Step | None:
    """A step that is one method under its own name, as the merge of one input (and a base) that it means."""
    for other, entry in fields.items():
        if other != name and other not in BESIDE_OPERATION:
            message = f"{quoted(other)} has no place beside {quoted(name)}: what it takes stands inside it"
            findings.error(message, entry.key_position, join(place.path, other))
    formats = _read_formats(fields, place.path, findings)
    path, body, form = join(place.path, name), fields[name].node, OPERATIONS[name]
    named, parameters = _split_body(body, form)
    parts = read_fields(named, form.sources, path, findings)
    sources: dict[str, Source] = {}
    for field in form.sources:
        if field in parts:
            source = read_source(parts[field].node, place.names, join(path, field), findings, place.name)
            sources |= {} if source is None else {field: source}
        elif isinstance(body, MapNode):
            findings.error(f"{quoted(field)} is missing: {form.rule}", body.position, path)
    settings = read_parameters(parameters, path, findings)
    if len(sources) < len(form.sources):
        return None
    first, *_ = form.sources
    read = Input(sources[first], {}, parts[first].node.position)
    where = _positions(node, place) | _merge_positions(parts, parameters, first)
    return Step(place.name, name, (read,), sources.get("base"), settings, *formats, where)


def _split_body(body: Node, form: OperationForm) -> tuple[Node, MapNode]:
    """The fields of an operation that name its sources, and those that are its parameters.

    A field that is nearly one of the sources that are missing is taken for it, and reported there.
    """
    if not isinstance(body, MapNode):
        return body, MapNode(body.position, ())
    missing = [field for field in form.sources if body.entry(field) is None]
    named = [entry for entry in body.entries if entry.key in form.sources or nearest(entry.key, missing)]
    others = [entry for entry in body.entries if entry not in named]
    return MapNode(body.position, tuple(named)), MapNode(body.position, tuple(others))


def _merge_positions(parts: dict[str, Entry], parameters: MapNode, first: str) -> dict[str, Position]:
    """The places of an operation's parts under the names a merge has for them: later checks know no difference."""
    where = {"models[0]": parts[first].node.position, "models[0].model": parts[first].node.position}
    if "base" in parts:
        where["base_model"] = parts["base"].node.position
    return where | positions(parameters, "parameters")


def _positions(node: MapNode, place: StepPlace) -> dict[str, Position]:
    return positions(node) | {"": place.position}
