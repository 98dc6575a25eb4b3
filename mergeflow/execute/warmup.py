"""Importing torch while something else is being done.

torch takes two seconds to import, more than planning a merge and as long as hashing its inputs. A run needs it in the
end whatever happens, so it is imported beside them.
"""

from __future__ import annotations

import threading
from importlib import import_module


def import_torch_in_background() -> threading.Thread:
    """Start importing what tasks need; joining the thread waits for it. A failure shows where torch is first used."""
    thread = threading.Thread(target=_import, name="import torch", daemon=True)
    thread.start()
    return thread


def _import() -> None:
    try:
        import_module("mergeflow.execute.task")
        import_module("dask.threaded")
    except ImportError:  # reported, with a traceback that leads somewhere, by the import that needs it
        return
