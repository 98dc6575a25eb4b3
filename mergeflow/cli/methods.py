"""What `methods` says: the table of methods, and one method in full; docs/methods.md says the same (method_page)."""

from __future__ import annotations

from dataclasses import asdict
from textwrap import wrap

from rich.table import Table

from mergeflow.cli.console import print_text, stdout
from mergeflow.errors import MergeflowError, counted
from mergeflow.graph.formula import short
from mergeflow.graph.method_cost import MethodCost, method_cost
from mergeflow.methods.registry import all_methods, find_method, method_names
from mergeflow.methods.schema import Method, Parameter, _Required
from mergeflow.recipe.nearest import did_you_mean

# Where a paragraph is wrapped; lines of formulas and parameters are left as long as they are.
WIDTH = 110


def show_methods(name: str | None) -> None:
    """All methods in a table, or one of them in full."""
    if name is not None:
        print_text(method_text(_method(name)))
        return
    console = stdout()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("method", no_wrap=True)
    table.add_column("what it does")
    methods, unusable = all_methods()
    for method in methods.values():
        table.add_row(method.name, method.summary)
    console.print(table)
    for reason in unusable:
        print_text(f"\n{reason}")
    console.print("\nmergeflow methods NAME says more")


def method_text(method: Method) -> str:
    """Everything about one method, as plain text."""
    lines = [f"{method.name}: {method.title}", "", method.summary, "", f"formula: {method.formula}"]
    lines += [f"paper:   {method.paper}"] if method.paper else []
    lines += ["", f"inputs:  {inputs_text(method)}"]
    cost = method_cost(method)
    if cost is not None:
        lines += ["", *wrap(cost_text(cost), WIDTH, initial_indent="cost:    ", subsequent_indent=" " * 9)]
    lines += ["", "parameters:"]
    lines += [f"  {_parameter_text(parameter)}" for parameter in method.parameters] or ["  none"]
    lines += ["", "example:", *(f"  {line}" for line in method.example.strip().splitlines())] if method.example else []
    return "\n".join(lines)


def methods_json(name: str | None) -> object:
    """Methods as plain data."""
    chosen = [_method(name)] if name is not None else list(all_methods()[0].values())
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
            "minimum": method.minimum,
            "maximum": method.maximum,
            "parameters": [
                {
                    "name": parameter.name,
                    "kind": parameter.kind,
                    "scope": parameter.scope,
                    "required": isinstance(parameter.default, _Required),
                    "default": None if isinstance(parameter.default, _Required) else parameter.default,
                    "minimum": parameter.minimum,
                    "maximum": parameter.maximum,
                    "choices": list(parameter.choices),
                    "meaning": parameter.meaning,
                }
                for parameter in method.parameters
            ],
            "cost": _cost_json(method_cost(method)),
            "example": method.example,
        }
        for method in chosen
    ]


def _method(name: str) -> Method:
    try:
        method = find_method(name)
    except ValueError as error:
        raise MergeflowError(str(error)) from error
    if method is None:
        raise MergeflowError(f"there is no merge method {name!r}{did_you_mean(name, method_names(), 'methods')}")
    return method


def inputs_text(method: Method) -> str:
    """How many inputs a method takes and of which type, what its base is, and what it gives."""
    count = f"at least {method.minimum}"
    if method.maximum is not None:
        count = str(method.maximum) if method.maximum == method.minimum else f"{method.minimum} to {method.maximum}"
    base = {"required": "and a base_model", "optional": "and a base_model if you like", "ignored": "no base of its own"}
    return f"{count} ({' or '.join(method.takes)}), {base[method.base]}; gives {_gives(method)}"


def cost_text(cost: MethodCost) -> str:
    """What a method costs, in sentences: read off its example's program."""
    first = f"the example reads {counted(cost.bytes_read, 'byte')} for each byte written"
    sentences = [f"{first} ({counted(cost.inputs, 'input')}), in {counted(cost.passes, 'pass', 'passes')}"]
    if cost.bytes_read > cost.inputs:
        sentences[0] += f"; {cost.inputs} where a tensor's inputs fit in memory between passes"
    if cost.statistics:
        named = ", ".join(f"{count} x {name}" if count > 1 else name for name, count in cost.statistics)
        again = f"{counted(cost.passes_again, 'pass', 'passes')} and {counted(cost.bytes_read_again, 'byte')}"
        sentences.append(f"Once its statistics ({named}) are cached: {again}")
    if cost.unit != "pointwise":
        sentences.append({"rowwise": "It works on whole rows", "whole": "It works on whole tensors"}[cost.unit])
    if cost.random:
        sentences.append("It draws random numbers, which depend on the seed and on the tensor alone")
    return ". ".join(sentences) + "."


def bounds_text(parameter: Parameter) -> str:
    """The bounds of a parameter's value, such as ``0 to 1``, or the words it may be; empty without any."""
    low, high = parameter.minimum, parameter.maximum
    if parameter.choices:
        return " or ".join(parameter.choices)
    if low is None and high is None:
        return ""
    if high is None:
        return f"at least {low:g}"
    return f"at most {high:g}" if low is None else f"{low:g} to {high:g}"


def scope_text(parameter: Parameter) -> str:
    """What a parameter has a value for."""
    return {"shared": "one value", "input": "per model", "non_base": "per model but the base"}[parameter.scope]


def default_text(parameter: Parameter) -> str:
    """A parameter's default, or that it has none."""
    if isinstance(parameter.default, _Required):
        return "required"
    return "none" if parameter.default is None else short(parameter.default)


def _cost_json(cost: MethodCost | None) -> object:
    return None if cost is None else asdict(cost) | {"statistics": dict(cost.statistics)}


def _gives(method: Method) -> str:
    if method.gives == "same":
        return "what its inputs are" + (" (weights, with a base_model)" if method.base == "optional" else "")
    return "weights if one of its inputs is" if method.gives == "mixed" else method.gives


def _parameter_text(parameter: Parameter) -> str:
    default = default_text(parameter)
    facts = [parameter.kind, scope_text(parameter), default if default == "required" else f"default {default}"]
    bounds = bounds_text(parameter)
    facts += [bounds] if bounds else []
    return f"{parameter.name} ({', '.join(facts)}): {parameter.meaning}"
