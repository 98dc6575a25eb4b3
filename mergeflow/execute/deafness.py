"""What a worker process of ours loads first: it does not listen to ctrl-C.

The terminal sends ctrl-C to every process it started. The one that the user started ends its workers itself, in good
order; left to themselves, each would show a traceback.
"""

from __future__ import annotations

import signal


def dask_setup(worker: object) -> None:
    """Called by Dask, in the worker's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
