"""The text of the small files beside the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping


def json_text(value: Mapping[str, object]) -> str:
    """JSON as transformers lays it out: two spaces, keys in the order they have, a newline at the end."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def text_bytes(text: str) -> bytes:
    """UTF-8, in which half a surrogate pair (from a strange file name) becomes the escape that JSON has for it."""
    return text.encode("utf-8", errors="backslashreplace")
