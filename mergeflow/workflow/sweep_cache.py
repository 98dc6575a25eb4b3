"""The cache of a sweep that is run without one: it carries what candidates share, and ends with the sweep.

It lies beside the outputs in ``.sweep.mergeflow``, held by a lock like the folder in which an output is built. A sweep
that is killed leaves it, and the next one in the same place uses what is in it, and removes it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mergeflow.errors import OutputError
from mergeflow.output.disk import Disk
from mergeflow.output.failures import reported
from mergeflow.output.run_lock import dismantle, hold
from mergeflow.workflow.options import Options

FOLDER = ".sweep.mergeflow"


def sweep_cache(parent: Path) -> Path:
    """Where the cache lies of a sweep whose candidates are written below `parent`."""
    return Path(os.path.abspath(parent)) / FOLDER / "cache"


@contextlib.contextmanager
def cache_for_all(options: Options, parent: Path) -> Iterator[Options]:
    """The options of each candidate: those of the sweep, with a cache in any case.

    Raises:
        OutputError: another sweep is at work there, or nothing can be written there.
    """
    if options.cache is not None:
        yield options
        return
    cache, disk = sweep_cache(parent), Disk()
    folder = cache.parent
    created = [above for above in reversed(folder.parents) if not above.exists()]
    with reported(OutputError, f"prepare {folder}"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = hold(folder, disk)
    try:
        yield replace(options, cache=cache)
    finally:
        with contextlib.suppress(OSError):
            dismantle(folder, disk)
        lock.close()
        for made in reversed(created):
            with contextlib.suppress(OSError):
                made.rmdir()  # only where nothing was written below
