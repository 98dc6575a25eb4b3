"""Which evaluation computes a program: the native library's where it can, else torch's. The bytes are the same.

torch takes two seconds to import, so it is imported when the first program needs it, and for most merges on a CPU none
does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergeflow.execute.checking import NonFinite, OutputChecks
from mergeflow.execute.destination import Destination
from mergeflow.execute.inputs import CachedTensor, InputBytes, Inputs
from mergeflow.execute.kept import KeptValues
from mergeflow.execute.native import NativeEvaluation, is_native
from mergeflow.execute.native_buffers import NativeWorkspace
from mergeflow.execute.own_methods import own_methods_reported
from mergeflow.execute.records import Settings
from mergeflow.graph.memory import allocate, native_share
from mergeflow.graph.program import Program

if TYPE_CHECKING:
    from mergeflow.execute.buffers import Workspace


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What is known of a program when it has been evaluated.

    Args:
        same_as: for each sink, the inputs that it equals, byte for byte.
        not_finite: for each sink that has one, its first NaN or infinity.
    """

    cache_bytes_read: int
    same_as: Mapping[int, set[int]]
    not_finite: Mapping[int, NonFinite]


def needs_torch(program: Program, device: str) -> bool:
    """Whether torch computes a program on a device."""
    return device != "cpu" or not is_native(program)


def evaluate(
    program: Program,
    settings: Settings,
    files: InputBytes,
    cached: Callable[[str], CachedTensor],
    destination: Destination,
    moved: Callable[[int, int], None],
) -> Evaluated:
    """Evaluate a program on this thread; its results are at their destination when this returns."""
    for instruction in program.instructions:
        for source in instruction.sources():
            files.will_read(source)
    run = _with_torch if needs_torch(program, settings.device) else _natively
    return run(program, settings, files, cached, destination, moved)


def _natively(
    program: Program,
    settings: Settings,
    files: InputBytes,
    cached: Callable[[str], CachedTensor],
    destination: Destination,
    moved: Callable[[int, int], None],
) -> Evaluated:
    workspace = _native_workspace(settings)
    budget = settings.budget
    share = native_share(budget) if settings.scratch else budget.share_bytes
    storage = allocate(program, share, retain_inputs=False)
    with KeptValues(storage, workspace.arena(storage.arena_bytes), settings.scratch) as kept:
        evaluation = NativeEvaluation(program, workspace, files, kept, cached, destination, moved)
        evaluation.run()
    return _evaluated(evaluation.inputs, evaluation.checks)


def _with_torch(
    program: Program,
    settings: Settings,
    files: InputBytes,
    cached: Callable[[str], CachedTensor],
    destination: Destination,
    moved: Callable[[int, int], None],
) -> Evaluated:
    from mergeflow.execute.evaluate import Evaluation

    workspace = _torch_workspace(settings)
    storage = allocate(program, settings.budget.share_bytes)
    arena = workspace.arena(storage.arena_bytes)
    with own_methods_reported(program), KeptValues(storage, arena, settings.scratch) as kept:
        evaluation = Evaluation(program, workspace, files, kept, cached, destination, moved)
        evaluation.run()
    return _evaluated(evaluation.inputs, evaluation.checks)


def _evaluated(inputs: Inputs, checks: OutputChecks) -> Evaluated:
    return Evaluated(inputs.cache_bytes_read, checks.same_as, checks.not_finite)


# A thread keeps its buffers from one task to the next: allocating them for every task costs more than a small task.
_threads = threading.local()


def _native_workspace(settings: Settings) -> NativeWorkspace:
    if getattr(_threads, "budget", None) != settings.budget:
        _threads.native = NativeWorkspace(settings.budget)
        _threads.budget = settings.budget
    workspace = _threads.native
    assert isinstance(workspace, NativeWorkspace)  # set with the budget above
    return workspace


def _torch_workspace(settings: Settings) -> Workspace:
    import torch

    from mergeflow.execute.buffers import Workspace

    wanted = (settings.budget, settings.device)
    if getattr(_threads, "settings", None) != wanted:
        torch.set_num_threads(1)
        _threads.workspace = Workspace(settings.budget, torch.device(settings.device))
        _threads.settings = wanted
    workspace = _threads.workspace
    assert isinstance(workspace, Workspace)  # set with the settings above
    return workspace
