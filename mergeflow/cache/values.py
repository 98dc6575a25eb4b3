"""Records as JSON, exactly: what is read back equals what was written, bit for bit.

JSON has text for every finite float (Python prints the shortest that reads back the same) but none for nan and the
infinities, and none for bytes. They become objects of one reserved key:

    nan    {"$float": "7ff8000000000000"}     the eight bytes of the IEEE number, so a nan keeps its payload
    b"ab"  {"$bytes": "YWI="}                 base64

A key of the record's own that begins with ``$`` is written with one ``$`` more. Tuples come back as lists.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Mapping

_ESCAPE = "$"


def to_json(value: object) -> object:
    """`value` in terms JSON has. TypeError for what a record cannot hold (a numpy or torch number, a set, ...)."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": struct.pack(">d", value).hex()}
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode("ascii")}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {_escaped(key): to_json(item) for key, item in value.items()}
    raise TypeError(f"a record holds numbers, text, bytes, lists and mappings, not {type(value).__name__}")


def from_json(value: object) -> object:
    """The value whose `to_json` form is `value`, as `json.loads` gives it."""
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"$float": str(digits)}:
            return struct.unpack(">d", bytes.fromhex(digits))[0]
        case {"$bytes": str(text)}:
            return base64.b64decode(text)
    return {key.removeprefix(_ESCAPE): from_json(item) for key, item in value.items()}


def _escaped(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"the keys of a record are text, not {type(key).__name__}")
    return _ESCAPE + key if key.startswith(_ESCAPE) else key
