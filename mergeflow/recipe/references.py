"""How a checkpoint is written: ``MODEL[@REVISION][+ADAPTER[@REVISION]]``, or a mapping that spells the parts out.

    org/chat@v2+./lora
    {model: org/chat@v2, lora: ./lora}                      mergekit's mapping
    {path: ./a+b, revision: v2}                             a path with a sign in it: nothing is split from it
    {path: ./chat, adapters: [./lora, {path: ./more, revision: v1, weight: 0.5}]}

A text is split at ``+`` first, then each part at ``@``, as mergekit does; in a mapping's `model`, the ``+`` means
nothing. Equality of references is equality of their text: ``./m`` is not ``m``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from mergeflow.recipe.fields import (
    ADAPTER_FIELDS,
    REFERENCE_FIELDS,
    read_converted,
    read_fields,
    read_list,
    read_text_value,
)
from mergeflow.recipe.findings import Findings
from mergeflow.recipe.nearest import quoted
from mergeflow.recipe.nodes import BrokenNode, Entry, MapNode, Node, join, shown
from mergeflow.recipe.records import AdapterReference, ModelReference, Source, StepReference


@dataclass(frozen=True, slots=True)
class AdaptedStep:
    """A step's result with adapters added to it."""

    name: str
    adapters: tuple[AdapterReference, ...]

    def __str__(self) -> str:
        return self.name + "".join(f"+{adapter}" for adapter in self.adapters)


# What the path and the revision of a checkpoint are in this recipe; None, reported, when they are nothing. The node
# and the path are where they stand.
Find = Callable[[str, str | None, Node, str], Source | None]
Named = Source | AdaptedStep


def parse_reference(text: str) -> ModelReference:
    """The reference a text stands for.

    Raises:
        ValueError: more than one ``+``, more than one ``@`` in a part, or nothing beside one of them.
    """
    model, *adapters = text.split("+")
    if len(adapters) > 1:
        rule = "several adapters are written {path: MODEL, adapters: [...]}"
        raise ValueError(f"{quoted(text)} has more than one '+': {rule}")
    path, revision = _parse_part(model, text)
    return ModelReference(path, revision, tuple(AdapterReference(*_parse_part(part, text)) for part in adapters))


def _parse_part(part: str, text: str) -> tuple[str, str | None]:
    path, *revisions = part.split("@")
    if len(revisions) > 1:
        raise ValueError(f"{quoted(text)} has more than one '@': a model has one revision")
    if not path or revisions == [""]:
        raise ValueError(f"{quoted(text)} is not a model: write a folder, or a hub id with an optional @revision")
    return path, revisions[0] if revisions else None


def as_written(path: str, revision: str | None, node: Node, where: str) -> Source | None:
    """The checkpoint of that path, where names mean nothing."""
    return ModelReference(path, revision)


def read_reference(node: Node, path: str, findings: Findings) -> ModelReference | None:
    """The checkpoint a node names where no names of the recipe may stand; None, reported, when it names none."""
    source = read_with_adapters(node, path, findings, as_written)
    return source if isinstance(source, ModelReference) else None


def read_with_adapters(node: Node, path: str, findings: Findings, find: Find) -> Named | None:
    """What a node names, as `find` knows it, with the adapters that are added to it; None, reported, when nothing."""
    if isinstance(node, MapNode):
        return _read_mapping(node, path, findings, find)
    text = read_text_value(node, path, findings)
    if text is None:
        return None
    try:
        reference = parse_reference(text)
    except ValueError as error:
        findings.error(str(error), node.position, path)
        return None
    found = find(reference.path, reference.revision, node, path)
    adapters = [_find_adapter(adapter, node, path, findings, find) for adapter in reference.adapters]
    return _with_adapters(found, adapters)


def _read_mapping(node: MapNode, path: str, findings: Findings, find: Find) -> Named | None:
    fields = read_fields(node, REFERENCE_FIELDS, path, findings)
    if "override_architecture" in fields:
        message = "'override_architecture' is not needed: the names of the tensors say what a model is made of"
        findings.warning(message, fields["override_architecture"].key_position, join(path, "override_architecture"))
    adapters = _read_adapters(fields, path, findings, find)
    if "path" in fields:
        literal = _read_path(fields, path, findings)
        # mergekit has no form that is never the name of a document.
        is_name = findings.tolerant and literal is not None
        found: Named | None = find(literal.path, literal.revision, node, path) if is_name and literal else literal
    elif "model" in fields:
        found = _read_model(fields["model"].node, join(path, "model"), findings, find)
    else:
        findings.error("a model needs 'path' (or 'model')", node.position, path)
        return None
    return _with_adapters(found, adapters)


def _read_path(fields: dict[str, Entry], path: str, findings: Findings) -> ModelReference | None:
    text = read_text_value(fields["path"].node, join(path, "path"), findings)
    revision = None
    if "revision" in fields:
        revision = read_text_value(fields["revision"].node, join(path, "revision"), findings)
    if text == "":
        findings.error("a model needs a path: this one is empty", fields["path"].node.position, join(path, "path"))
    return ModelReference(text, revision or None) if text else None


def _read_model(node: Node, path: str, findings: Findings, find: Find) -> Named | None:
    """The `model` of a mapping: ``a+b@c``, of which only the ``@`` has a meaning, or a mapping of its own."""
    if isinstance(node, MapNode):
        return _read_mapping(node, path, findings, find)
    part = _read_part(node, path, findings)
    return None if part is None else find(*part, node, path)


def _read_part(node: Node, path: str, findings: Findings) -> tuple[str, str | None] | None:
    text = read_text_value(node, path, findings)
    if text is None:
        return None
    try:
        return _parse_part(text, text)
    except ValueError as error:
        findings.error(str(error), node.position, path)
        return None


def _read_adapters(
    fields: dict[str, Entry], path: str, findings: Findings, find: Find
) -> list[AdapterReference | None]:
    """The adapters of `lora` and `adapters`."""
    adapters: list[AdapterReference | None] = []
    if "lora" in fields:
        adapters.append(read_adapter(fields["lora"].node, join(path, "lora"), findings, find))
    if "adapters" in fields:
        here = join(path, "adapters")
        for index, item in enumerate(read_list(fields["adapters"].node, here, findings)):
            adapters.append(read_adapter(item, f"{here}[{index}]", findings, find))
    return adapters


def read_adapter(node: Node, path: str, findings: Findings, find: Find) -> AdapterReference | None:
    """One adapter: ``PATH[@REVISION]`` or ``{path, revision, weight}``; None, reported, when it is none."""
    if not isinstance(node, MapNode):
        part = _read_part(node, path, findings)
        return None if part is None else _find_adapter(AdapterReference(*part), node, path, findings, find)
    fields = read_fields(node, ADAPTER_FIELDS, path, findings)
    if "path" not in fields:
        findings.error("an adapter needs a 'path'", node.position, path)
        return None
    reference = _read_path(fields, path, findings)
    weight = 1.0
    if "weight" in fields:
        weight = _read_weight(fields["weight"].node, join(path, "weight"), findings)
    return None if reference is None else AdapterReference(reference.path, reference.revision, weight)


def _read_weight(node: Node, path: str, findings: Findings) -> float:
    weight = read_converted(node, "float")
    if isinstance(weight, int | float) and math.isfinite(weight):
        return float(weight)
    if not isinstance(node, BrokenNode):
        findings.error(f"{shown(node)} is not a weight: a finite number", node.position, path)
    return 1.0


def _find_adapter(
    adapter: AdapterReference, node: Node, path: str, findings: Findings, find: Find
) -> AdapterReference | None:
    """An adapter that may be written as a name of the recipe."""
    if findings.tolerant or adapter.revision is not None:
        return adapter
    found = find(adapter.path, None, node, path)
    if isinstance(found, ModelReference) and not found.adapters:
        return AdapterReference(found.path, found.revision, adapter.weight)
    if found is not None:
        findings.error(f"{quoted(adapter.path)} cannot be added as an adapter: it is a model", node.position, path)
    return None


def _with_adapters(source: Named | None, adapters: list[AdapterReference | None]) -> Named | None:
    whole = tuple(adapter for adapter in adapters if adapter is not None)
    if source is None or len(whole) < len(adapters):
        return None
    if not whole:
        return source
    if isinstance(source, StepReference):
        return AdaptedStep(source.name, whole)
    return replace(source, adapters=source.adapters + whole)
