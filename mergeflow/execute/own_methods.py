"""What goes wrong in a user's own method, as a run reports it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mergeflow.errors import RunError
from mergeflow.graph.program import Program
from mergeflow.methods.own import OwnMethodError


@contextmanager
def own_methods_reported(program: Program) -> Iterator[None]:
    """Turn what a user's method did wrong into a RunError that names the tensor."""
    try:
        yield
    except OwnMethodError as error:
        name = program.sinks[0].name
        raise RunError(f"{name}: {error}" if name else str(error)) from error
