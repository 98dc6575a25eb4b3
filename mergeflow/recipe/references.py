"""How a checkpoint is written: ``MODEL[@REVISION][+ADAPTER[@REVISION]]``, or a mapping that spells the parts out.

A text is split at ``+`` first, then each part at ``@``, as mergekit does. So a folder with one of these signs in its
name is written ``{path: ./a+b}``, which nothing is split from. Equality of references is equality of their text:
``./m`` is not ``m``.
"""

from __future__ import annotations

from dataclasses import replace

from mergeflow.recipe.fields import MISSING_IN_REFERENCES, REFERENCE_FIELDS, read_fields, read_text_value
from mergeflow.recipe.findings import Findings
from mergeflow.recipe.nearest import quoted
from mergeflow.recipe.nodes import Entry, MapNode, Node, ScalarNode, join
from mergeflow.recipe.records import ModelReference


def parse_reference(text: str) -> ModelReference:
    """The reference a text stands for.

    Raises:
        ValueError: more than one ``+``, more than one ``@`` in a part, or nothing beside one of them.
    """
    model, *adapters = text.split("+")
    if len(adapters) > 1:
        raise ValueError(f"{quoted(text)} has more than one '+': a model takes one adapter")
    path, revision = _parse_part(model, text)
    if not adapters:
        return ModelReference(path, revision)
    return ModelReference(path, revision, *_parse_part(adapters[0], text))


def _parse_part(part: str, text: str) -> tuple[str, str | None]:
    path, *revisions = part.split("@")
    if len(revisions) > 1:
        raise ValueError(f"{quoted(text)} has more than one '@': a model has one revision")
    if not path or revisions == [""]:
        raise ValueError(f"{quoted(text)} is not a model: write a folder, or a hub id with an optional @revision")
    return path, revisions[0] if revisions else None


def read_reference(node: Node, path: str, findings: Findings) -> ModelReference | None:
    """The checkpoint a node names; None, reported, when it names none."""
    if isinstance(node, MapNode):
        return _read_mapping(node, path, findings)
    text = read_text_value(node, path, findings)
    return None if text is None else read_reference_text(text, node, path, findings)


def read_reference_text(text: str, node: Node, path: str, findings: Findings) -> ModelReference | None:
    """As `parse_reference`, with mistakes reported. An adapter is reported too, and left out."""
    try:
        reference = parse_reference(text)
    except ValueError as error:
        findings.error(str(error), node.position, path)
        return None
    if reference.adapter:
        findings.unsupported(f"{quoted(text)}: adapters (MODEL+ADAPTER) are", node.position, path)
    return replace(reference, adapter=None, adapter_revision=None)


def _read_mapping(node: MapNode, path: str, findings: Findings) -> ModelReference | None:
    fields = read_fields(node, REFERENCE_FIELDS, path, findings, MISSING_IN_REFERENCES)
    if "path" in fields:
        return _read_parts(fields, path, findings)
    if "model" not in fields:
        findings.error("a model needs 'path' (or 'model')", node.position, path)
        return None
    inner = fields["model"].node
    here = join(path, "model")
    if isinstance(inner, MapNode):
        return _read_mapping(inner, here, findings)
    return _read_unsplit(inner, here, findings)


def _read_parts(fields: dict[str, Entry], path: str, findings: Findings) -> ModelReference | None:
    text = read_text_value(fields["path"].node, join(path, "path"), findings)
    revision = None
    if "revision" in fields:
        revision = read_text_value(fields["revision"].node, join(path, "revision"), findings)
    return ModelReference(text, revision or None) if text else None


def _read_unsplit(node: Node, path: str, findings: Findings) -> ModelReference | None:
    """``{model: a+b@c}``: in a mapping only the ``@`` has a meaning."""
    text = read_text_value(node, path, findings)
    if text is None or not isinstance(node, ScalarNode):
        return None
    try:
        return ModelReference(*_parse_part(text, text))
    except ValueError as error:
        findings.error(str(error), node.position, path)
        return None
