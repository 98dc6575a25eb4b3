"""JSON from strangers: an object or one clear error, never a surprise later.

Headers, indexes and configurations come with the checkpoint and may be damaged or hostile. What Python's parser lets
through and we do not: bytes that are not UTF-8, a document that is not an object, nesting so deep that it overflows
the stack, and (where it would hide something) a key given twice, of which the parser keeps the last.
"""

from __future__ import annotations

import json
from pathlib import Path

from mergeflow.errors import CheckpointError


class _GivenTwice(ValueError):
    """A key that stands twice in one object."""


def parse_object(text: bytes, where: str, *, unique: bool) -> dict[str, object]:
    """The JSON object in `text`.

    Args:
        where: the file's name, for messages.
        unique: refuse a key that is given twice.

    Raises:
        CheckpointError: not UTF-8, not JSON, not an object, nested too deeply, or a key twice.
    """
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_without_repeats if unique else None)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{where}: not UTF-8 text (byte {error.start})") from error
    except _GivenTwice as error:
        raise CheckpointError(f"{where}: {error}") from error
    except RecursionError as error:
        raise CheckpointError(f"{where}: nested too deeply") from error
    except ValueError as error:
        raise CheckpointError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: a JSON object was expected")
    return value


def read_object(path: Path, limit: int, *, unique: bool) -> dict[str, object]:
    """The JSON object in a file of at most `limit` bytes.

    Raises:
        CheckpointError: as `parse_object`, or the file is larger, or cannot be read.
    """
    try:
        with path.open("rb") as stream:
            text = stream.read(limit + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(text) > limit:
        raise CheckpointError(f"{path}: larger than {limit // 1_000_000} MB, which no such file is")
    return parse_object(text, str(path), unique=unique)


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _GivenTwice(f"{repeated!r} is given twice")
    return found
