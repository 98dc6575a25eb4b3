"""What a merge is made of: whole models, slices of their layers, or modules that each are one of the two.

    models:                          slices:                                  modules:
      - model: a                       - sources:                               vision: {models: [{model: a}]}
        parameters: {weight: 1}            - {model: a, layer_range: [0, 8]}    text: {slices: [...]}
                                           - {model: b, layer_range: [8, 16]}
                                         parameters: {weight: 0.5}

Of the three, one is written. As in mergekit, one that is empty counts as not written. A range is its first layer and
the one behind its last; the sources of a slice give as many layers each. A slice of no layers is allowed: it gives
what stands before and behind the layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from mergeflow.errors import Position, counted
from mergeflow.recipe.fields import (
    INPUT_FIELDS,
    MODULE_FIELDS,
    SLICE_FIELDS,
    SOURCE_FIELDS,
    read_converted,
    read_fields,
    read_list,
    read_named,
)
from mergeflow.recipe.findings import Findings
from mergeflow.recipe.nearest import quoted
from mergeflow.recipe.nodes import (
    BrokenNode,
    Entry,
    ListNode,
    MapNode,
    Node,
    ScalarNode,
    is_empty,
    join,
    kind_of,
    shown,
)
from mergeflow.recipe.parameters import read_parameters
from mergeflow.recipe.records import Input, Module, Parameters, Slice, Source
from mergeflow.recipe.sources import Names, read_source

WAYS = ("models", "slices", "modules")
Part = TypeVar("Part")
RANGE_RULE = "a layer range is [first, behind the last], two integers from 0"


@dataclass(frozen=True, slots=True)
class StepPlace:
    """Which step is read: its name, the path of its fields, its place, and what names mean in it.

    `names` is None in a mergekit file of one document: there every name is a checkpoint.
    """

    name: str
    path: str
    position: Position
    names: Names | None

    def source(self, node: Node, path: str, findings: Findings) -> Source | None:
        """What a field of the step names; None, reported, when it names nothing."""
        return read_source(node, self.names, path, findings, self.name)


@dataclass(frozen=True, slots=True)
class MadeOf:
    """The parts of a step, one of the three; the fields are those of `Step`."""

    inputs: tuple[Input, ...] = ()
    slices: tuple[Slice, ...] = ()
    modules: tuple[Module, ...] = ()


def read_made_of(
    node: MapNode, fields: dict[str, Entry], path: str, place: StepPlace, findings: Findings
) -> MadeOf | None:
    """The models, slices or modules that stand in `node`; None, reported, when not each of them could be read."""
    allowed = WAYS if path == place.path else WAYS[:2]
    written = [name for name in allowed if name in fields and not is_empty(fields[name].node)]
    if not written:
        _report_missing(node, fields, path, place, findings)
        return None
    for name in written[1:]:
        message = f"{quoted(written[0])} and {quoted(name)} exclude each other: a merge is made of one of them"
        findings.error(message, fields[name].key_position, join(path, name))
    parts = [_read_way(name, fields[name].node, join(path, name), place, findings) for name in written]
    return parts[0]


def _report_missing(node: MapNode, fields: dict[str, Entry], path: str, place: StepPlace, findings: Findings) -> None:
    rule = "a merge lists its models" if path == place.path else "a module lists its models or its slices"
    if "models" in fields and isinstance(fields["models"].node, ListNode):
        findings.error(f"'models' is empty: {rule}", fields["models"].node.position, join(path, "models"))
    elif any(isinstance(fields[name].node, BrokenNode) for name in WAYS if name in fields):
        return
    else:
        position = place.position if path == place.path else node.position
        findings.error(f"'models' is missing: {rule}", position, path)


def _read_way(name: str, node: Node, path: str, place: StepPlace, findings: Findings) -> MadeOf | None:
    match name:
        case "models":
            inputs = _whole([_read_model(item, here, place, findings) for item, here in _items(node, path, findings)])
            return None if inputs is None else MadeOf(inputs=inputs)
        case "slices":
            slices = _whole([_read_slice(item, here, place, findings) for item, here in _items(node, path, findings)])
            return None if slices is None else MadeOf(slices=slices)
        case _:
            modules = _whole([_read_module(entry, path, place, findings) for entry in read_named(node, path, findings)])
            return None if modules is None else MadeOf(modules=modules)


def _items(node: Node, path: str, findings: Findings) -> list[tuple[Node, str]]:
    return [(item, f"{path}[{index}]") for index, item in enumerate(read_list(node, path, findings))]


def _whole(parts: list[Part | None]) -> tuple[Part, ...] | None:
    """The parts, if there are any and each of them could be read."""
    whole = tuple(part for part in parts if part is not None)
    return whole if whole and len(whole) == len(parts) else None


def _read_model(node: Node, path: str, place: StepPlace, findings: Findings) -> Input | None:
    """An entry of `models`: a model as a whole."""
    if isinstance(node, BrokenNode):
        return None
    if isinstance(node, ScalarNode) and node.value is not None:
        message = f"expected a mapping with a 'model': write {{model: {node.text}}}"
        findings.error(message, node.position, path)
        source = place.source(node, path, findings)
        return None if source is None else Input(source, {}, node.position)
    fields = read_fields(node, INPUT_FIELDS, path, findings)
    return _read_input(node, fields, path, place, findings, "each entry of 'models' names one")


def _read_input(
    node: Node, fields: dict[str, Entry], path: str, place: StepPlace, findings: Findings, rule: str
) -> Input | None:
    parameters = read_own_parameters(fields, path, findings)
    if "model" not in fields:
        if isinstance(node, MapNode):
            findings.error(f"'model' is missing: {rule}", node.position, path)
        return None
    named = fields["model"].node
    source = place.source(named, join(path, "model"), findings)
    return None if source is None else Input(source, parameters, named.position)


def read_own_parameters(fields: dict[str, Entry], path: str, findings: Findings) -> Parameters:
    """The settings of a part's `parameters`, none when there are none."""
    if "parameters" not in fields:
        return {}
    return read_parameters(fields["parameters"].node, join(path, "parameters"), findings)


def _read_slice(node: Node, path: str, place: StepPlace, findings: Findings) -> Slice | None:
    fields = read_fields(node, SLICE_FIELDS, path, findings)
    if not isinstance(node, MapNode):
        return None
    parameters = read_own_parameters(fields, path, findings)
    _read_residual_weight(fields, path, findings)
    base, has_base = None, "base_model" in fields
    if has_base:
        base = place.source(fields["base_model"].node, join(path, "base_model"), findings)
    inputs = _read_sources(node, fields, path, place, findings)
    if inputs is None or (has_base and base is None):
        return None
    return Slice(inputs, base, parameters, node.position)


def _read_residual_weight(fields: dict[str, Entry], path: str, findings: Findings) -> None:
    """A field that mergekit reads and never uses."""
    if "residual_weight" not in fields:
        return
    entry = fields["residual_weight"]
    message = "'residual_weight' has no effect (it has none in mergekit either)"
    findings.warning(message, entry.key_position, join(path, "residual_weight"))


def _read_sources(
    node: MapNode, fields: dict[str, Entry], path: str, place: StepPlace, findings: Findings
) -> tuple[Input, ...] | None:
    rule = "a slice lists the layers it is made from"
    if "sources" not in fields:
        findings.error(f"'sources' is missing: {rule}", node.position, path)
        return None
    listed, here = fields["sources"].node, join(path, "sources")
    if isinstance(listed, ListNode) and not listed.items:
        findings.error(f"'sources' is empty: {rule}", listed.position, here)
        return None
    read = [_read_source_layers(item, at, place, findings) for item, at in _items(listed, here, findings)]
    sources = _whole(read)
    if sources is None or not _are_equal_in_length(listed, sources, here, findings):
        return None
    return sources


def _read_source_layers(node: Node, path: str, place: StepPlace, findings: Findings) -> Input | None:
    """An entry of `sources`: some layers of a model."""
    fields = read_fields(node, SOURCE_FIELDS, path, findings)
    entry = _read_input(node, fields, path, place, findings, "each entry of 'sources' names one")
    if not isinstance(node, MapNode):
        return None
    if "layer_range" not in fields:
        findings.error(f"'layer_range' is missing: {RANGE_RULE}", node.position, path)
        return None
    layers = _read_range(fields["layer_range"].node, join(path, "layer_range"), findings)
    if entry is None or layers is None:
        return None
    return Input(entry.source, entry.parameters, entry.position, layers)


def _read_range(node: Node, path: str, findings: Findings) -> tuple[int, int] | None:
    if isinstance(node, BrokenNode):
        return None
    if not isinstance(node, ListNode):
        findings.error(f"expected a list, found {kind_of(node)}: {RANGE_RULE}", node.position, path)
        return None
    if len(node.items) != 2:
        findings.error(f"{len(node.items)} values: {RANGE_RULE}", node.position, path)
        return None
    ends = [_read_layer(item, f"{path}[{index}]", findings) for index, item in enumerate(node.items)]
    first, behind = ends
    if first is None or behind is None:
        return None
    if behind < first:
        findings.error(f"the range [{first}, {behind}] ends before it starts: {RANGE_RULE}", node.position, path)
        return None
    return first, behind


def _read_layer(node: Node, path: str, findings: Findings) -> int | None:
    if isinstance(node, BrokenNode):
        return None
    is_flag = isinstance(node, ScalarNode) and isinstance(node.value, bool)
    layer = read_converted(node, "int")
    if isinstance(layer, int) and layer >= 0 and not is_flag:
        return layer
    findings.error(f"{shown(node)} is not a layer: {RANGE_RULE}", node.position, path)
    return None


def _are_equal_in_length(listed: Node, sources: tuple[Input, ...], path: str, findings: Findings) -> bool:
    """Whether every source of a slice gives as many layers as the first."""
    counts = [entry.layers[1] - entry.layers[0] for entry in sources if entry.layers is not None]
    items = listed.items if isinstance(listed, ListNode) else ()
    for index, count in enumerate(counts):
        if count != counts[0]:
            item = items[index]
            entry = item.entry("layer_range") if isinstance(item, MapNode) else None
            position = entry.node.position if entry is not None else item.position
            first = counted(counts[0], "layer")
            message = f"{counted(count, 'layer')}, but the first source gives {first}: all give as many"
            findings.error(message, position, f"{path}[{index}].layer_range")
    return len(set(counts)) <= 1


def _read_module(entry: Entry, path: str, place: StepPlace, findings: Findings) -> Module | None:
    here, node = join(path, entry.key), entry.node
    fields = read_fields(node, MODULE_FIELDS, here, findings)
    if not isinstance(node, MapNode):
        return None
    parameters = read_own_parameters(fields, here, findings)
    made = read_made_of(node, fields, here, place, findings)
    return None if made is None else Module(entry.key, made.inputs, made.slices, parameters, entry.key_position)
