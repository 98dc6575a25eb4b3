"""The text of a recipe file, or why there is none: missing, not a file, not UTF-8, far too large."""

from __future__ import annotations

from pathlib import Path

from mergeflow.errors import Position, Problem

# Whoever passes a checkpoint for a recipe must not wait until it is read.
MOST_BYTES = 8 * 1024 * 1024


def read_text(path: Path, file: str) -> str | Problem:
    """The text at `path`, without a byte order mark; a Problem when it cannot be read. `file` names it there."""
    start = Position(file, 1, 1)
    try:
        with path.open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
    except FileNotFoundError:
        return Problem("there is no such file", start)
    except IsADirectoryError:
        return Problem("a recipe is a YAML file; this is a folder", start)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return Problem(f"the file cannot be read: {reason}", start)
    if len(content) > MOST_BYTES:
        return Problem(f"a recipe is a YAML file of at most {MOST_BYTES // 1024**2} MiB; this file is larger", start)
    return _decode(content, file)


def _decode(content: bytes, file: str) -> str | Problem:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8-sig", errors="replace")
        position = Position(file, before.count("\n") + 1, len(before) - before.rfind("\n"))
        return Problem(f"the file is not UTF-8 text: byte 0x{content[error.start]:02x} is not allowed here", position)
