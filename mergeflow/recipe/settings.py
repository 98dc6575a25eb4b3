"""The value of a setting for one tensor, by mergekit's rules.

    scalar       converted to the parameter's type
    gradient     every element converted; then, at position t in [0, 1] among k elements:
                 float, int    s = t (k - 1), i = trunc(s), f = s - i:  (1 - f) g[i] + f g[min(k - 1, i + 1)]
                 bool, string  g[trunc(t (k - 1))], a step
    conditions   the first whose filter is part of the tensor's name decides; none: no value

"No value" is None, and so is an empty gradient: the next place (`resolve.py`), then the default, is asked. The type of
the parameter decides, not the spelling: ``[true, false]`` for a float goes from 1 to 0. A value whose filter does
not match is never converted.
"""

from __future__ import annotations

import math
import re
from typing import Literal

from mergeflow.errors import Position
from mergeflow.recipe.nearest import quoted
from mergeflow.recipe.records import Branch, Scalar, Setting

# The same words as `mergeflow.methods.schema.ParameterKind`; recipes know no methods.
Kind = Literal["float", "int", "bool", "string"]

_TRUE = ("true", "t", "yes", "y", "on", "1")
_FALSE = ("false", "f", "no", "n", "off", "0")
_INTEGER = re.compile(r"[+-]?[0-9]+(?:\.0+)?")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?(?:inf|infinity|nan)", re.IGNORECASE)
# Python refuses to read integers of more than 4300 digits; no parameter has a hundred.
_LONGEST = 100


class SettingError(ValueError):
    """A value that is not of its parameter's type. `position` is where it stands in the recipe."""

    def __init__(self, message: str, position: Position | None = None) -> None:
        self.position = position
        super().__init__(message)


def evaluate(setting: Setting, kind: Kind, name: str, t: float) -> Scalar | None:
    """The value of `setting` for the tensor `name` at gradient position `t` (0 at the first layer, 1 at the last).

    Raises:
        SettingError: the value that applies is not of type `kind`.
    """
    for branch in setting.branches:
        if branch.matches(name):
            return value_of(branch, kind, t)
    return None


def value_of(branch: Branch, kind: Kind, t: float) -> Scalar | None:
    """The value of one branch at gradient position `t`; None for an empty gradient."""
    try:
        if not isinstance(branch.value, tuple):
            return convert(branch.value, kind)
        return interpolate(tuple(convert(item, kind) for item in branch.value), kind, t)
    except ValueError as error:
        raise SettingError(str(error), branch.position) from None


def interpolate(values: tuple[Scalar, ...], kind: Kind, t: float) -> Scalar | None:
    """The value of a gradient of converted `values` at `t` in [0, 1].

    Raises:
        ValueError: the parameter is an integer, and there is none at this place.
    """
    if not values:
        return None
    if len(values) == 1:
        return values[0]
    place = t * (len(values) - 1)
    index = math.trunc(place)
    if kind == "bool" or kind == "string":
        return values[index]
    fraction = place - index
    first, second = float(values[index]), float(values[min(len(values) - 1, index + 1)])
    return convert((1 - fraction) * first + fraction * second, kind)


def convert(value: Scalar, kind: Kind) -> Scalar:
    """`value` as a parameter of type `kind`.

    float takes numbers, booleans (1 and 0) and texts of numbers; int takes what is whole among these; bool takes
    booleans, 0, 1 and words such as yes and off; string takes texts alone.

    Raises:
        ValueError: the value is none of these.
    """
    match kind:
        case "float":
            return _to_float(value)
        case "int":
            return _to_int(value)
        case "bool":
            return _to_bool(value)
        case "string":
            if isinstance(value, str):
                return value
            raise _refusal(value, "a text (in quotes)")


def _to_float(value: Scalar) -> float:
    if isinstance(value, str):
        text = value.strip()
        if len(text) > _LONGEST or not _NUMBER.fullmatch(text):
            raise _refusal(value, "a number")
        return float(text)
    try:
        return float(value)
    except OverflowError:
        raise _refusal(value, "a number of float64's range") from None


def _to_int(value: Scalar) -> int:
    if isinstance(value, str):
        text = value.strip()
        if len(text) > _LONGEST or not _INTEGER.fullmatch(text):
            raise _refusal(value, "an integer")
        return int(text.partition(".")[0])
    if isinstance(value, float) and not value.is_integer():
        raise _refusal(value, "an integer")
    return int(value)


def _to_bool(value: Scalar) -> bool:
    word = value.lower() if isinstance(value, str) else value
    if word in _TRUE or (not isinstance(word, str) and word == 1):
        return True
    if word in _FALSE or (not isinstance(word, str) and word == 0):
        return False
    raise _refusal(value, "true or false")


def _refusal(value: Scalar, expected: str) -> ValueError:
    shown = quoted(value) if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else repr(value)
    return ValueError(f"{shown} is not {expected}")
