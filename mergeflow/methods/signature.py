"""A function's signature as a method's schema: what its annotations say of its inputs and parameters.

    def spread(
        tensors: list[torch.Tensor],               the models without the base, in listed order
        base: torch.Tensor,                        or Tensor | None: optional; left out: the method has no base
        weight: PerModel[float] = 1.0,             one value for each of `tensors`
        t: Annotated[float, Bounds(0, 1)] = 0.5,   one value; float, int, bool, str or a Literal of texts
        rank: int | None = None,                   a value that may be absent
    ) -> torch.Tensor: ...

The first parameter takes the tensors and one called `base` the base; all others are parameters of the method. One
without a default must be set in the recipe. In `Annotated`, a text is the parameter's meaning, `Bounds` its bounds.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mergeflow.methods.schema import REQUIRED, BasePolicy, Parameter, ParameterKind, Value, _Required

T = TypeVar("T")


class _ForEachModel:
    """Marks the annotation of a parameter with one value for each model."""


# One value for each of the models. With `Any` beside it, a type checker lets one value stand as the default of all.
PerModel = Annotated[Sequence[T] | Any, _ForEachModel()]


@dataclass(frozen=True, slots=True)
class Bounds:
    """The least and the largest value of a number, inclusive; None for no bound."""

    minimum: float | None = None
    maximum: float | None = None


@dataclass(frozen=True, slots=True)
class Signature:
    """What a method's function takes."""

    base: BasePolicy
    parameters: tuple[Parameter, ...]


class _Mistake(ValueError):
    """One thing that is wrong with a signature."""


_KINDS: dict[object, ParameterKind] = {float: "float", int: "int", bool: "bool", str: "string"}
_SPREADING = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_RULE = "a parameter is a float, int, bool or str, or one of these | None, or PerModel[one of these]"


def read_signature(function: Callable[..., object]) -> Signature:
    """The schema of a function.

    Raises:
        ValueError: the signature is none of a method; the message names everything that is wrong.
    """
    try:
        hints = get_type_hints(function, include_extras=True)
        declared = list(inspect.signature(function).parameters.values())
    except (NameError, TypeError, AttributeError) as error:
        raise ValueError(f"its annotations cannot be read: {error}") from None
    mistakes = list(_mistakes(declared, hints))
    base: BasePolicy = "ignored"
    if _is_tensor(_without_none(hints.get("base"))):
        base = "optional" if _allows_none(hints["base"]) else "required"

    parameters: list[Parameter] = []
    for parameter in declared[1:]:
        if parameter.name == "base" or parameter.name not in hints or parameter.kind in _SPREADING:
            continue
        try:
            parameters.append(_parameter(parameter, hints[parameter.name], has_base=base != "ignored"))
        except _Mistake as mistake:
            mistakes.append(f"{parameter.name} {mistake}")
    if mistakes:
        raise ValueError("; ".join(mistakes))
    return Signature(base, tuple(parameters))


def _mistakes(declared: Sequence[inspect.Parameter], hints: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the tensors, the result, and the way parameters are passed."""
    first = declared[0] if declared else None
    if first is None or first.kind in _SPREADING or not _is_list_of_tensors(hints.get(first.name)):
        yield "its first parameter takes the models' tensors: write tensors: list[torch.Tensor]"
    if not _is_tensor(hints.get("return")):
        yield "it gives one tensor: write -> torch.Tensor"
    for parameter in declared[1:]:
        if parameter.kind in _SPREADING:
            yield f"it takes *{parameter.name}; name each parameter"
        elif parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            yield f"{parameter.name} is passed by its name, so it cannot stand before a /"
        elif parameter.name not in hints:
            yield f"{parameter.name} has no annotation: {_RULE}"
        elif parameter.name == "base" and not _is_tensor(_without_none(hints["base"])):
            yield "base is the base_model's tensor: write base: torch.Tensor, or | None where it may be absent"


def _parameter(declared: inspect.Parameter, hint: Any, *, has_base: bool) -> Parameter:
    notes, inner = _unwrapped(hint)
    is_per_model = any(isinstance(note, _ForEachModel) for note in notes)
    if is_per_model:
        more, inner = _unwrapped(_member(inner))
        notes += more
    optional = _allows_none(inner)
    choices = _choices(_without_none(inner))
    kind = "string" if choices else _KINDS.get(_without_none(inner))
    if kind is None:
        raise _Mistake(f"is annotated {inspect.formatannotation(hint)}; {_RULE}")
    bounds = next((note for note in notes if isinstance(note, Bounds)), Bounds())
    return Parameter(
        name=declared.name,
        kind=kind,
        scope="shared" if not is_per_model else "non_base" if has_base else "input",
        default=_default(declared.default, kind, optional),
        minimum=bounds.minimum,
        maximum=bounds.maximum,
        meaning=next((note for note in notes if isinstance(note, str)), ""),
        choices=choices,
    )


def _default(value: Any, kind: ParameterKind, optional: bool) -> Value | _Required | None:
    if value is inspect.Parameter.empty:
        return REQUIRED
    if value is None:
        if optional:
            return None
        raise _Mistake("has the default None; let its annotation say so with | None")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "float" and is_number and math.isfinite(value):
        return float(value)
    if (kind == "int" and is_number and isinstance(value, int)) or (kind == "bool" and isinstance(value, bool)):
        return value
    if kind == "string" and isinstance(value, str):
        return value
    raise _Mistake(f"has the default {value!r}, which is no {kind}")


def _choices(hint: Any) -> tuple[str, ...]:
    """The texts of a `Literal` of texts; empty for any other type."""
    values = get_args(hint) if get_origin(hint) is Literal else ()
    return values if all(isinstance(value, str) for value in values) else ()


def _unwrapped(hint: Any) -> tuple[list[object], Any]:
    """The notes of an `Annotated` type, and the type."""
    if get_origin(hint) is Annotated:
        inner, *notes = get_args(hint)
        return notes, inner
    return [], hint


def _member(union: Any) -> Any:
    """The T of `PerModel[T]`: the first of its two types is Sequence[T]."""
    sequence = get_args(union)[0]
    return get_args(sequence)[0]


def _without_none(hint: Any) -> Any:
    """X of ``X | None`` and of X; the hint itself when it is another union."""
    members = [member for member in get_args(hint) if member is not NoneType]
    return members[0] if _is_union(hint) and len(members) == 1 else hint


def _allows_none(hint: Any) -> bool:
    return _is_union(hint) and NoneType in get_args(hint)


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType)


def _is_list_of_tensors(hint: Any) -> bool:
    return get_origin(hint) in (list, Sequence) and _is_tensor(get_args(hint)[0])


def _is_tensor(hint: Any) -> bool:
    """Whether a type is torch's Tensor; known by its name, so that torch need not be loaded to ask."""
    return isinstance(hint, type) and (hint.__module__, hint.__qualname__) == ("torch", "Tensor")
