"""Merge language models by recipes that are planned, streamed and cached: change one number, pay for what changes."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mergeflow.api import Sweep, export, lineage, load, plan, run, tensors, verify
    from mergeflow.methods.signature import Bounds, PerModel
    from mergeflow.workflow.in_memory import merge_state_dicts, merge_tensors
    from mergeflow.workflow.options import Options
    from mergeflow.workflow.own_methods import merge_method

__version__ = "0.1.0"
__all__ = [
    "Bounds",
    "Options",
    "PerModel",
    "Sweep",
    "__version__",
    "export",
    "lineage",
    "load",
    "merge_method",
    "merge_state_dicts",
    "merge_tensors",
    "plan",
    "run",
    "tensors",
    "verify",
]

_HOMES = {
    "load": "mergeflow.api",
    "plan": "mergeflow.api",
    "run": "mergeflow.api",
    "tensors": "mergeflow.api",
    "export": "mergeflow.api",
    "verify": "mergeflow.api",
    "lineage": "mergeflow.api",
    "Sweep": "mergeflow.api",
    "Options": "mergeflow.workflow.options",
    "Bounds": "mergeflow.methods.signature",
    "PerModel": "mergeflow.methods.signature",
    "merge_method": "mergeflow.workflow.own_methods",
    "merge_state_dicts": "mergeflow.workflow.in_memory",
    "merge_tensors": "mergeflow.workflow.in_memory",
}


def __getattr__(name: str) -> object:
    # The rooms import each other's modules, and `import mergeflow.errors` must not import all of them.
    if name not in _HOMES:
        raise AttributeError(f"module 'mergeflow' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
