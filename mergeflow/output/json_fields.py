"""Plain JSON from a file that anybody may have written, read value by value: of its type, or one clear sentence."""

from __future__ import annotations

from mergeflow.errors import OutputError

Plain = bool | int | float | str


def mapping(value: object, what: str) -> dict[str, object]:
    """A JSON object. (`what` names the value in the message of the OutputError that these functions raise.)"""
    if not isinstance(value, dict):
        raise OutputError(f"{what} should be a mapping")
    return value


def sequence(value: object, what: str) -> list[object]:
    """A JSON array."""
    if not isinstance(value, list):
        raise OutputError(f"{what} should be a list")
    return value


def text(value: object, what: str) -> str:
    """A JSON string."""
    if not isinstance(value, str):
        raise OutputError(f"{what} should be text")
    return value


def text_or_none(value: object, what: str) -> str | None:
    """A JSON string or null."""
    return None if value is None else text(value, what)


def number(value: object, what: str) -> float:
    """A JSON number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise OutputError(f"{what} should be a number")
    return value


def count(value: object, what: str) -> int:
    """A whole number from 0 on."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise OutputError(f"{what} should be a number of elements")
    return value


def texts(value: object, what: str) -> dict[str, str]:
    """A JSON object of strings."""
    return {key: text(item, f"{what}.{key}") for key, item in mapping(value, what).items()}


def scalars(value: object, what: str) -> dict[str, Plain]:
    """A JSON object of strings, numbers, true and false."""
    found: dict[str, Plain] = {}
    for key, item in mapping(value, what).items():
        if not isinstance(item, (bool, int, float, str)):
            raise OutputError(f"{what}.{key} should be a plain value")
        found[key] = item
    return found
