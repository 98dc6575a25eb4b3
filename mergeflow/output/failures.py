"""The edge where the operating system's errors become ours: what could not be done, and why."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mergeflow.errors import MergeflowError


@contextlib.contextmanager
def reported(kind: type[MergeflowError], action: str) -> Iterator[None]:
    """Turn an OSError inside the with-block into a `kind` that says which `action` failed, and the system's reason."""
    try:
        yield
    except OSError as error:
        raise kind(f"cannot {action}: {error.strerror or error}") from error
