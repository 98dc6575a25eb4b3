"""Importing what a run's tasks will need while something else is being done.

torch takes two seconds to import, more than planning a merge. Where the native library computes everything it is not
needed at all; otherwise it is imported beside the planning and hashing that come before the first task.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from importlib import import_module, metadata
from pathlib import Path

from mergeflow.graph.nodes import Node


def import_in_background(nodes: Iterable[Node], device: str) -> threading.Thread:
    """Start importing what the tasks of a graph need. A failure shows where the import is first needed.

    Joining the thread waits for it.
    """
    thread = threading.Thread(target=_import, args=(list(nodes), device), name="import", daemon=True)
    thread.start()
    return thread


def may_have_cuda() -> bool:
    """Whether it is worth asking torch for a CUDA device: not with a build for CPUs, nor without a driver."""
    if sys.platform != "linux":
        return sys.platform == "win32"
    return not metadata.version("torch").endswith("+cpu") and Path("/proc/driver/nvidia/version").exists()


def _import(nodes: list[Node], device: str) -> None:
    try:
        native = import_module("mergeflow.execute.native")
        import_module("mergeflow.execute.task")
        import_module("dask.threaded")
        on_cpu = device == "cpu" or (device == "auto" and not may_have_cuda())
        if not (on_cpu and native.has_kernels(nodes)):
            import_module("mergeflow.execute.evaluate")
    except ImportError:  # reported, with a traceback that leads somewhere, by the import that needs it
        return
