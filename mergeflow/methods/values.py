"""Reading typed values out of a mapping of parameters.

Values arrive checked against the method's schema, as a mapping of mixed types. These functions give each its type
back, and hold the one rule that no schema states: a number that takes part in arithmetic is finite. NaN would pass
every comparison with a bound, and then spread to every weight of the model. (What was computed from a damaged tensor
may well be NaN; that must spread, so that the damage is seen: `real`.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def number(parameters: Mapping[str, object], name: str) -> float:
    """The finite number called `name`; ValueError when it is none."""
    return _finite(parameters[name], name)


def optional_number(parameters: Mapping[str, object], name: str) -> float | None:
    """The finite number called `name`, or None when it is absent or null."""
    value = parameters.get(name)
    return None if value is None else _finite(value, name)


def numbers(parameters: Mapping[str, object], name: str) -> tuple[float, ...]:
    """The finite numbers of the list called `name`; ValueError when one is none."""
    value = parameters[name]
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f"{name} must be a list of numbers, not {value!r}")
    return tuple(_finite(item, name) for item in value)


def whole(parameters: Mapping[str, object], name: str) -> int:
    """The integer called `name`; ValueError when it is none."""
    value = parameters[name]
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} must be a whole number, not {value!r}")
    return value


def real(record: Mapping[str, object], name: str) -> float:
    """The number called `name` in a record that was computed: finite or not, as the tensor's values made it."""
    value = record[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number, not {value!r}")
    return float(value)


def flag(parameters: Mapping[str, object], name: str) -> bool:
    """The boolean called `name`; ValueError when it is none."""
    value = parameters[name]
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, not {value!r}")
    return value


def text(parameters: Mapping[str, object], name: str) -> str:
    """The text called `name`; ValueError when it is none."""
    value = parameters[name]
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a text, not {value!r}")
    return value


def _finite(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number, not {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, not {value!r}")
    return float(value)
