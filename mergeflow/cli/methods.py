"""What `methods` says: the table of methods, and one method in full."""

from __future__ import annotations

from rich.table import Table

from mergeflow.cli.console import print_text, stdout
from mergeflow.errors import MergeflowError
from mergeflow.graph.formula import short
from mergeflow.methods.schema import Method, Parameter, _Required
from mergeflow.methods.table import METHODS
from mergeflow.recipe.nearest import did_you_mean


def show_methods(name: str | None) -> None:
    """All methods in a table, or one of them in full."""
    if name is not None:
        print_text(method_text(_method(name)))
        return
    console = stdout()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("method", no_wrap=True)
    table.add_column("what it does")
    for method in METHODS.values():
        table.add_row(method.name, method.summary)
    console.print(table)
    console.print("\nmergeflow methods NAME says more")


def method_text(method: Method) -> str:
    """Everything about one method, as plain text."""
    lines = [f"{method.name}: {method.title}", "", method.summary, "", f"formula: {method.formula}"]
    lines += [f"paper:   {method.paper}"] if method.paper else []
    lines += ["", f"inputs:  {_inputs_text(method)}", "", "parameters:"]
    lines += [f"  {_parameter_text(parameter)}" for parameter in method.parameters] or ["  none"]
    lines += ["", "example:", *(f"  {line}" for line in method.example.strip().splitlines())] if method.example else []
    return "\n".join(lines)


def methods_json(name: str | None) -> object:
    """Methods as plain data."""
    chosen = [_method(name)] if name is not None else list(METHODS.values())
    return [
        {
            "name": method.name,
            "title": method.title,
            "summary": method.summary,
            "formula": method.formula,
            "paper": method.paper,
            "base": method.base,
            "takes": list(method.takes),
            "gives": method.gives,
            "parameters": [
                {
                    "name": parameter.name,
                    "kind": parameter.kind,
                    "scope": parameter.scope,
                    "required": isinstance(parameter.default, _Required),
                    "default": None if isinstance(parameter.default, _Required) else parameter.default,
                    "minimum": parameter.minimum,
                    "maximum": parameter.maximum,
                    "meaning": parameter.meaning,
                }
                for parameter in method.parameters
            ],
        }
        for method in chosen
    ]


def _method(name: str) -> Method:
    if name not in METHODS:
        raise MergeflowError(f"there is no merge method {name!r}{did_you_mean(name, METHODS, 'methods')}")
    return METHODS[name]


def _inputs_text(method: Method) -> str:
    count = f"at least {method.minimum}"
    if method.maximum is not None:
        count = str(method.maximum) if method.maximum == method.minimum else f"{method.minimum} to {method.maximum}"
    base = {"required": "and a base_model", "optional": "and a base_model if you like", "ignored": "no base of its own"}
    return f"{count} ({' or '.join(method.takes)}), {base[method.base]}; gives {_gives(method)}"


def _gives(method: Method) -> str:
    return "what its inputs are" if method.gives == "same" else method.gives


def _parameter_text(parameter: Parameter) -> str:
    scope = {"shared": "one value", "input": "per model", "non_base": "per model but the base"}[parameter.scope]
    default = "required" if isinstance(parameter.default, _Required) else f"default {short(parameter.default)}"
    bounds = ""
    if parameter.minimum is not None or parameter.maximum is not None:
        low = "-inf" if parameter.minimum is None else f"{parameter.minimum:g}"
        high = "inf" if parameter.maximum is None else f"{parameter.maximum:g}"
        bounds = f", {low} to {high}"
    return f"{parameter.name} ({parameter.kind}, {scope}, {default}{bounds}): {parameter.meaning}"
