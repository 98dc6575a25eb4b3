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

from dataclasses import replace
from typing import cast

from mergeflow.dtypes import FLOAT_NAMES
from mergeflow.errors import Position
from mergeflow.recipe.fields import (
    DOCUMENT_FIELDS,
    OPERATIONS,
    STEP_FIELDS,
    OperationForm,
    read_choice,
    read_fields,
    read_text_value,
)
from mergeflow.recipe.findings import Findings
from mergeflow.recipe.made_of import StepPlace, read_made_of, read_own_parameters
from mergeflow.recipe.nearest import did_you_mean, nearest, quoted
from mergeflow.recipe.nodes import BrokenNode, Entry, MapNode, Node, join, positions
from mergeflow.recipe.parameters import read_parameters
from mergeflow.recipe.records import CachePolicy, Input, ModelReference, Source, Step
from mergeflow.recipe.sources import read_adapter_source
from mergeflow.recipe.vocabulary import read_chat_template, read_vocabulary

CACHE_POLICIES = ("auto", "always", "never")
# What people call the formats elsewhere; too far from our names for difflib.
SHORT_NAMES = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "fp64": "float64"}
BESIDE_OPERATION = ("dtype", "out_dtype", "cache")
WHAT_A_STEP_IS = f"'merge_method' (or {', '.join(quoted(name) for name in OPERATIONS)})"


def read_step(node: Node, place: StepPlace, findings: Findings) -> Step | None:
    """The step a mapping describes; None, reported, when its method or a source is missing or unreadable."""
    if isinstance(node, BrokenNode):
        return None
    known = DOCUMENT_FIELDS if findings.tolerant else STEP_FIELDS
    fields = read_fields(node, known, place.path, findings)
    if not isinstance(node, MapNode):
        return None
    operation = next((name for name in OPERATIONS if name in fields), None)
    if operation is not None:
        return _read_operation(operation, node, fields, place, findings)
    return _read_merge(node, fields, place, findings)


def _read_merge(node: MapNode, fields: dict[str, Entry], place: StepPlace, findings: Findings) -> Step | None:
    method = _read_method(fields, place, findings)
    made = read_made_of(node, fields, place.path, place, findings)
    parameters = read_own_parameters(fields, place.path, findings)
    formats = _read_formats(fields, place.path, findings)
    vocabulary, is_known = read_vocabulary(fields, place, findings)
    template = read_chat_template(fields, place.path, findings)
    base = None
    if "base_model" in fields:
        base = place.source(fields["base_model"].node, join(place.path, "base_model"), findings)
        is_known = is_known and base is not None
    if method is None or made is None or not is_known:
        return None
    step = Step(place.name, method, made.inputs, base, parameters, *formats, _positions(node, place))
    return replace(
        step,
        slices=made.slices,
        modules=made.modules,
        vocabulary=vocabulary,
        chat_template=template,
        path=place.path,
    )


def _read_method(fields: dict[str, Entry], place: StepPlace, findings: Findings) -> str | None:
    if "merge_method" in fields:
        return read_text_value(fields["merge_method"].node, join(place.path, "merge_method"), findings)
    message = "'merge_method' is missing" if findings.tolerant else f"a step needs {WHAT_A_STEP_IS}"
    findings.error(message, place.position, place.path)
    return None


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
    parts = read_fields(named, _source_fields(form), path, findings)
    sources = _read_operands(form, parts, body, path, place, findings)
    settings = read_parameters(parameters, path, findings)
    if sources is None:
        return None
    first, *_ = sources
    read = Input(sources[first], {}, parts[first].node.position)
    where = _positions(node, place) | _merge_positions(parts, parameters, first)
    step = Step(place.name, name, (read,), sources.get("base"), settings, *formats, where)
    return replace(step, path=place.path)


def _source_fields(form: OperationForm) -> dict[str, str]:
    return {**form.sources, **({"adapter": form.adapter} if form.adapter else {})}


def _read_operands(
    form: OperationForm, parts: dict[str, Entry], body: Node, path: str, place: StepPlace, findings: Findings
) -> dict[str, Source] | None:
    """The sources of an operation by their fields, its input first; None, reported, when one is missing."""
    first, *others = form.sources
    required = [first, *others]
    if form.adapter and "adapter" in parts:
        if first in parts:
            message = f"{quoted(first)} and 'adapter' exclude each other: {form.rule}"
            findings.error(message, parts[first].key_position, join(path, first))
        first, required = "adapter", ["adapter"]
    sources: dict[str, Source | None] = {}
    for field in (first, *others):
        if field in parts:
            sources[field] = _read_operand(field, parts[field].node, join(path, field), place, findings)
        elif field in required:
            sources[field] = None
            if isinstance(body, MapNode):
                findings.error(f"{quoted(field)} is missing: {form.rule}", body.position, path)
    whole = {field: source for field, source in sources.items() if source is not None}
    return _on_its_base(whole) if len(whole) == len(sources) else None


def _on_its_base(sources: dict[str, Source]) -> dict[str, Source]:
    """An adapter whose base is a checkpoint is the difference of the two: of base and adapter, and of the base."""
    adapter, base = sources.get("adapter"), sources.get("base")
    if isinstance(adapter, ModelReference) and isinstance(base, ModelReference) and not base.is_adapter:
        return {**sources, "adapter": replace(base, adapters=base.adapters + adapter.adapters)}
    return sources


def _read_operand(field: str, node: Node, path: str, place: StepPlace, findings: Findings) -> Source | None:
    if field != "adapter":
        return place.source(node, path, findings)
    adapter = read_adapter_source(node, place.names, path, findings)
    return None if adapter is None else ModelReference("", adapters=(adapter,))


def _split_body(body: Node, form: OperationForm) -> tuple[Node, MapNode]:
    """The fields of an operation that name its sources, and those that are its parameters.

    A field that is nearly one of the sources that are missing is taken for it, and reported there.
    """
    if not isinstance(body, MapNode):
        return body, MapNode(body.position, ())
    known = _source_fields(form)
    missing = [field for field in form.sources if body.entry(field) is None]
    if form.adapter and body.entry("adapter") is not None:
        missing = missing[1:]
    named = [entry for entry in body.entries if entry.key in known or nearest(entry.key, missing)]
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
