"""Where the parts of views lie while a run reads them: in the cache, or in a folder that ends with the run.

Into that folder goes what may not stay in the cache: everything without one, what belongs to a step with
``cache: never``, and, where NaN and infinities are allowed, what may have them (read back by a later run, they would
count as its inputs').
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from tempfile import TemporaryDirectory

from mergeflow.execute.files import writing
from mergeflow.execute.records import Settings
from mergeflow.graph.tasks import Task


@contextmanager
def room_for_parts(waves: Sequence[Sequence[Task]], settings: Settings) -> Iterator[Settings]:
    """The settings under which `waves` of tasks, and those that read what they compute, find room for that."""
    if not waves:
        yield settings
        return
    with writing(settings.scratch):
        folder = TemporaryDirectory(dir=settings.scratch, prefix="parts-")
    with folder as path:
        yield replace(settings, parts=path)
