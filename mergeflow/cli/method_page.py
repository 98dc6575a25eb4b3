"""docs/methods.md: every merge method in full, from the same rows and the same words as `mergeflow methods NAME`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mergeflow.cli.methods import bounds_text, cost_text, default_text, inputs_text, scope_text
from mergeflow.graph.method_cost import method_cost
from mergeflow.methods.schema import Method, Parameter

INTRODUCTION = """\
# Merge methods

Made by `make docs` from the table of methods; do not edit. `mergeflow methods NAME` prints the same for one of them,
`--json` for scripts.

In the formulas, X_i are the models of the step as listed, B is its `base_model`, D_i = X_i - B is a task vector, R is
the result, and each stands for one tensor of a model. *Cost* is read off the program that the example compiles to, for
one matrix in bfloat16: bytes read for each byte written, and sweeps over the tensors.
"""


def methods_page(methods: Iterable[Method]) -> str:
    """The whole page."""
    listed = list(methods)
    overview = _table(
        ("method", "what it does", "models", "base"),
        [(f"[`{method.name}`](#{method.name})", method.summary, _count(method), method.base) for method in listed],
    )
    return "\n".join([INTRODUCTION, overview, *map(_section, listed)])


def _section(method: Method) -> str:
    parts = [f"## {method.name}\n", f"*{method.title}.* {method.summary}\n", f"    {method.formula}\n"]
    parts += [f"Paper: <{method.paper}>\n"] if method.paper else []
    parts += [f"Inputs: {inputs_text(method)}.\n"]
    cost = method_cost(method)
    parts += [f"Cost: {cost_text(cost)}\n"] if cost is not None else []
    if method.parameters:
        head = ("parameter", "kind", "for", "default", "bounds", "meaning")
        parts += [_table(head, [_row(parameter) for parameter in method.parameters])]
    if method.example:
        parts += [f"```yaml\n{method.example.strip()}\n```\n"]
    return "\n".join(parts)


def _row(parameter: Parameter) -> Sequence[str]:
    return (
        f"`{parameter.name}`",
        parameter.kind,
        scope_text(parameter),
        default_text(parameter),
        bounds_text(parameter),
        parameter.meaning,
    )


def _count(method: Method) -> str:
    if method.maximum is None:
        return f"{method.minimum} or more"
    return str(method.minimum) if method.minimum == method.maximum else f"{method.minimum} to {method.maximum}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a bar inside a cell would end it."""
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
