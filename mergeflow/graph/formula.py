"""How a value of one step is made, as one line of operations over the names of what the step reads."""

from __future__ import annotations

from collections.abc import Mapping

from mergeflow.graph.nodes import Graph, Node

MOST_SHOWN = 12


def formula(graph: Graph, node: int, names: Mapping[int, str]) -> str:
    """The whole chain behind a node, such as ``add(base, consensus(trim(task_vector(math, base), ...)))``.

    Args:
        names: what some nodes are called (inputs by their model, results by their step); the chain ends there.
    """
    if node in names:
        return names[node]
    it = graph[node]
    inputs = [formula(graph, i, names) for i in it.inputs if graph[i].kind != "statistic"]
    op, parameters = _said(it)
    settings = [f"{name}={short(value)}" for name, value in parameters.items()]
    # A statistic stands in the formula as the settings it was asked with: trim(x; k=...).
    for i in it.inputs:
        if graph[i].kind == "statistic":
            settings += [f"{name}={short(value)}" for name, value in graph[i].parameters.items()]
    return f"{op}({', '.join(inputs)}{'; ' if settings else ''}{', '.join(settings)})"


def _said(node: Node) -> tuple[str, Mapping[str, object]]:
    """What a node is called and set to: its operation; of a user's method, the method's own name and arguments."""
    own, arguments = node.parameters.get("method"), node.parameters.get("arguments")
    if isinstance(own, Mapping) and isinstance(arguments, Mapping):
        return str(own["name"]), {name: value for name, value in arguments.items() if value is not None}
    # A row map may be as long as a vocabulary.
    shown = {
        name: f"{len(value)} numbers" if isinstance(value, list) and len(value) > MOST_SHOWN else value
        for name, value in node.parameters.items()
    }
    return node.op, shown


def short(value: object) -> str:
    """A parameter's value as one would write it, numbers to six digits."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(short(item) for item in value) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)
