"""A user's own method: a plain function, and what was declared of it.

It becomes a row like any other, lowered to one node of the operation ``own_method`` (the whole tensors) or
``own_pointwise`` (blocks of them). Which function computes it stands in the node's parameters, so in its key:

    method      name, version, function (module:name), code (a digest of its source), package (of a plug-in)
    arguments   the parameters, those of the models as lists
    has_base    whether the last input is the base

So two methods of one name, or one method before and after an edit, never share a value; and a worker that is sent the
node knows what to import and whether it has the same (`methods.registry`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergeflow.methods.schema import (
    REQUIRED,
    Call,
    Emit,
    Handle,
    Method,
    ParameterKind,
    ResultType,
    Value,
    ValueType,
)
from mergeflow.methods.signature import Signature, read_signature
from mergeflow.methods.source import captured_values

Identity = Mapping[str, str | int]


class OwnMethodError(Exception):
    """A user's method cannot be found where it is to be computed, or did not do what a method must."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """A function declared as a method.

    Args:
        function: called as ``function(tensors, base=..., **parameters)``.
        pointwise: it is given blocks of the tensors, flat; else the tensors in their shape.
    """

    name: str
    version: int
    function: Callable[..., Any]
    signature: Signature
    pointwise: bool
    minimum: int
    maximum: int | None
    takes: tuple[ValueType, ...]
    gives: ResultType
    paper: str
    formula: str

    @property
    def reference(self) -> str:
        """Where the function is found: ``module:name``. A worker process has the main script under another name."""
        module = self.function.__module__
        return f"{'__main__' if module == '__mp_main__' else module}:{self.function.__qualname__}"


def declare(
    function: Callable[..., Any],
    *,
    name: str | None = None,
    version: int = 1,
    pointwise: bool = False,
    minimum: int = 1,
    maximum: int | None = None,
    takes: Sequence[ValueType] | None = None,
    gives: ResultType | None = None,
    paper: str = "",
    formula: str = "",
) -> Declaration:
    """What a function is as a method; see `mergeflow.merge_method` for the arguments.

    Raises:
        ValueError: it is none; the message says everything that is wrong.
    """
    if not callable(function) or not hasattr(function, "__qualname__"):
        raise ValueError("it is not a function")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(f"its version is {version!r}; it must be a whole number from 1 on")
    signature = read_signature(function)
    captured = captured_values(function)
    if captured:
        names = ", ".join(captured)
        raise ValueError(f"it uses {names} of the function around it, which no key can hold; make it a parameter")
    is_alone = signature.base == "ignored"
    return Declaration(
        name=name or function.__name__,
        version=version,
        function=function,
        signature=signature,
        pointwise=pointwise,
        minimum=minimum,
        maximum=maximum,
        takes=tuple(takes) if takes else ("weights", "delta") if is_alone else ("weights",),
        gives=gives or ("same" if is_alone else "weights"),
        paper=paper,
        formula=formula,
    )


def row(declaration: Declaration, identity: Identity) -> Method:
    """The method's row: what recipes are checked against, and how it lowers."""

    def lower(call: Call, emit: Emit) -> Handle:
        return _lower(declaration, identity, call, emit)

    summary = (declaration.function.__doc__ or "").strip().partition("\n")[0]
    return Method(
        name=declaration.name,
        title=declaration.name,
        summary=summary or f"The function {declaration.reference}.",
        formula=declaration.formula or f"R = {declaration.function.__name__}(...)",
        parameters=declaration.signature.parameters,
        lower=lower,
        base=declaration.signature.base,
        minimum=declaration.minimum,
        maximum=declaration.maximum,
        takes=declaration.takes,
        gives=declaration.gives,
        paper=declaration.paper,
        example=_example(declaration),
    )


_SAMPLES: Mapping[ParameterKind, str] = {"float": "0.5", "int": "1", "bool": "true", "string": "text"}


def _example(declaration: Declaration) -> str:
    """A recipe's step that uses the method, with a value for each parameter that must have one."""
    models = ["math", "chat", *(f"model-{number}" for number in range(3, declaration.minimum + 1))]
    needed = [it for it in declaration.signature.parameters if it.default is REQUIRED]
    values = ", ".join(f"{it.name}: {it.choices[0] if it.choices else _SAMPLES[it.kind]}" for it in needed)
    lines = [f"merge_method: {declaration.name}"]
    lines += ["base_model: ./models/base"] if declaration.signature.base != "ignored" else []
    lines += ["models:", *(f"  - {{model: ./models/{model}}}" for model in models[: declaration.maximum])]
    lines += [f"parameters: {{{values}}}"] if values else []
    return "\n".join([*lines, ""])


def _lower(declaration: Declaration, identity: Identity, call: Call, emit: Emit) -> Handle:
    """One node over the operands and, last, the base. What is empty is not computed: it is one of them."""
    handles = [operand.handle for operand in call.operands]
    has_base = declaration.signature.base != "ignored" and call.base is not None
    if has_base and call.base is not None:
        handles.append(call.base)
    if call.size == 0:
        return handles[-1]
    arguments: dict[str, Value | list[Value | None] | None] = {}
    for parameter in declaration.signature.parameters:
        if parameter.scope == "shared":
            arguments[parameter.name] = call.parameters[parameter.name]
        else:
            arguments[parameter.name] = [operand.parameters[parameter.name] for operand in call.operands]
    op = "own_pointwise" if declaration.pointwise else "own_method"
    return emit(op, handles, method=dict(identity), arguments=arguments, has_base=has_base)


def call(declaration: Declaration, *args: Any, **given: Any) -> Any:
    """The function called directly: a single value of a parameter of the models is repeated for all of them."""
    bound = inspect.signature(declaration.function).bind(*args, **given)
    bound.apply_defaults()
    tensors, *_ = bound.arguments.values()
    for parameter in declaration.signature.parameters:
        value = bound.arguments[parameter.name]
        if parameter.scope != "shared" and (value is None or isinstance(value, bool | int | float | str)):
            bound.arguments[parameter.name] = [value] * len(tensors)
    return declaration.function(*bound.args, **bound.kwargs)
