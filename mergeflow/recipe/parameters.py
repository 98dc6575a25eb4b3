"""Parameter values, as they may be written.

    t: 0.5                                  a scalar
    t: [0, 0.5, 1]                          a gradient, spread over the layers
    t: {filter: mlp, value: 0.5}            a condition: for tensors whose name holds "mlp"
    t: [{filter: mlp, value: [0, 1]},       conditions; the first that matches decides
        {value: 0.5}]

A value stays what YAML made of it: `settings.convert` gives it the type of the parameter that looks it up.
"""

from __future__ import annotations

from mergeflow.recipe.fields import CONDITION_FIELDS, read_fields, read_named, read_text_value
from mergeflow.recipe.findings import Findings
from mergeflow.recipe.nearest import nearest, quoted
from mergeflow.recipe.nodes import BrokenNode, ListNode, MapNode, Node, ScalarNode, join
from mergeflow.recipe.records import Branch, Parameters, Scalar, Setting

RULE = "a parameter is a value, a list of values (a gradient), or {value, filter} mappings"


def read_parameters(node: Node, path: str, findings: Findings) -> Parameters:
    """The settings of a `parameters` mapping; those that cannot be read are reported and left out."""
    settings: dict[str, Setting] = {}
    for entry in read_named(node, path, findings):
        setting = read_setting(entry.node, join(path, entry.key), findings)
        if setting is not None:
            settings[entry.key] = setting
    return settings


def read_setting(node: Node, path: str, findings: Findings) -> Setting | None:
    """One parameter's value; None, reported, when it is none."""
    if isinstance(node, ListNode) and any(isinstance(item, MapNode) for item in node.items):
        branches = [_read_condition(item, f"{path}[{index}]", findings) for index, item in enumerate(node.items)]
    elif isinstance(node, MapNode):
        branches = [_read_condition(node, path, findings)]
    else:
        value = _read_value(node, path, findings)
        branches = [None if value is None else Branch(value, None, node.position)]
    whole = tuple(branch for branch in branches if branch is not None)
    if len(whole) < len(branches):
        return None
    _warn_of_unreachable(whole, path, findings)
    return Setting(whole, node.position)


def _read_condition(node: Node, path: str, findings: Findings) -> Branch | None:
    if not isinstance(node, MapNode):
        if not isinstance(node, BrokenNode):
            findings.error(f"plain values and conditions cannot be mixed in one list: {RULE}", node.position, path)
        return None
    if node.entry("value") is None:
        typo = nearest("value", [entry.key for entry in node.entries])
        hint = f" (did you mean it by {quoted(typo)}?)" if typo else ""
        findings.error(f"a condition needs a 'value'{hint}: {RULE}", node.position, path)
        return None
    fields = read_fields(node, CONDITION_FIELDS, path, findings)
    if "value" not in fields:
        findings.error(f"no value: {RULE}", node.position, join(path, "value"))
        return None
    name_filter = None
    if "filter" in fields:
        name_filter = read_text_value(fields["filter"].node, join(path, "filter"), findings)
        if name_filter is None:
            return None
    value_node = fields["value"].node
    value = _read_value(value_node, join(path, "value"), findings)
    return None if value is None else Branch(value, name_filter, value_node.position)


def _read_value(node: Node, path: str, findings: Findings) -> Scalar | tuple[Scalar, ...] | None:
    if not isinstance(node, ListNode):
        return _read_scalar(node, path, findings)
    items = [_read_scalar(item, f"{path}[{index}]", findings) for index, item in enumerate(node.items)]
    whole = tuple(item for item in items if item is not None)
    return whole if len(whole) == len(items) else None


def _read_scalar(node: Node, path: str, findings: Findings) -> Scalar | None:
    match node:
        case ScalarNode(value=None):
            findings.error(f"no value: {RULE}", node.position, path)
        case ScalarNode(value=value):
            return value
        case ListNode():
            findings.error(f"a list inside a list: {RULE}", node.position, path)
        case MapNode():
            findings.error(f"a mapping where a value is expected: {RULE}", node.position, path)
    return None


def _warn_of_unreachable(branches: tuple[Branch, ...], path: str, findings: Findings) -> None:
    """A condition below one that matches every tensor never decides."""
    for index, branch in enumerate(branches[:-1]):
        if branch.filter in (None, "", "*"):
            after = branches[index + 1]
            name = "the value below" if after.filter is None else f"the filter {quoted(after.filter)}"
            message = f"{name} is never reached: this value is for every tensor, and the first match decides"
            findings.warning(message, branch.position, f"{path}[{index}]")
            return
