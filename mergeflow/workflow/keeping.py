"""What the rule of ``cache: auto`` is told in a plan and in a run: the machine's rates, its operations, the room.

A run measures the machine when seconds hang on the answer; a plan uses what is remembered, or else nominal rates. Both
then decide alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

from mergeflow.cache.open import Where, open_local
from mergeflow.execute.warmup import may_have_cuda
from mergeflow.graph.policy import NOMINAL, NOMINALLY, Circumstances, Rates, table_costs
from mergeflow.graph.tasks import Target
from mergeflow.graph.values import Compiled
from mergeflow.workflow.beside import ALONE, Beside
from mergeflow.workflow.caring import limit_room
from mergeflow.workflow.options import Options
from mergeflow.workflow.rates import measure, place_of, remember, remembered

FindRates = Callable[[Callable[[], float]], Rates]

# A machine is measured when so many seconds of computing hang on what is kept.
SECONDS_AT_STAKE = 1.0

# What the native library needs of the table's costs, which are the torch kernels'. A merge of three models of 60M
# parameters, its statistics known, on one core: TIES takes 0.4 of the table's time, DARE-TIES 0.5, slerp 0.7, SCE 0.9.
NATIVE_SHARE = 0.6
# The same of a GPU, whose time goes into moving tensors there and back. A guess on the careful side.
CUDA_SHARE = 0.1


def circumstances(
    options: Options,
    compiled: Compiled,
    targets: Sequence[Target],
    *,
    may_measure: bool,
    beside: Beside = ALONE,
) -> Circumstances:
    """What the rule is told.

    Args:
        targets: what the outputs still need: room for it is left on the disk.
        may_measure: whether this is a run.
        beside: what later candidates of a sweep want.
    """
    if options.cache is None:
        return NOMINALLY
    return Circumstances(
        rates=_rates(options.cache, options.state, _largest_model(compiled), may_measure=may_measure),
        costs=operation_costs(options.device),
        # Where nobody can say how much there is, there is none.
        room=lambda: limit_room(options, reserved=sum(_nbytes(compiled, it) for it in targets)) or 0,
        wanted_again=beside.wanted_again,
        is_last_use=beside.is_last_use,
    )


def operation_costs(device: str) -> dict[str, float]:
    """Nanoseconds per element and tensor input of each operation, as a run on a device (``auto``: likewise) does it."""
    table = table_costs()
    if device != "cpu" and (device != "auto" or may_have_cuda()):
        return {name: cost * CUDA_SHARE for name, cost in table.items()}

    from mergeflow.methods.native import library as native
    from mergeflow.methods.native.operations import NATIVE
    from mergeflow.methods.native.statistics import STATISTICS, SUMS

    if native.library() is None:
        return table
    fast = {*NATIVE, *STATISTICS, *SUMS}
    return {name: cost * NATIVE_SHARE if name in fast else cost for name, cost in table.items()}


def _rates(cache: Where, state: Path, model: Path | None, *, may_measure: bool) -> FindRates:
    def found(at_stake: Callable[[], float]) -> Rates:
        local, today = open_local(cache), date.today()
        place = place_of(local.root, model)
        rates = remembered(state, place, today)
        if rates is None and may_measure and at_stake() >= SECONDS_AT_STAKE:
            rates = measure(local, model, today)
            if rates is not None:
                remember(state, place, rates)
        return rates or NOMINAL

    return found


def _largest_model(compiled: Compiled) -> Path | None:
    """The largest of the files that the models begin with; None when no model lies in files."""
    first = [next(iter(model.tensors.values()), None) for model in compiled.checkpoints.values()]
    sources = [source for tensor in first if tensor is not None for source in tensor.sources()]
    files = [segment.file for source in sources for segment in source.segments]
    largest = max(files, key=lambda file: (file.size, file.path), default=None)
    return Path(largest.path) if largest is not None else None


def _nbytes(compiled: Compiled, target: Target) -> int:
    node = compiled.graph[target.node]
    size = 1
    for length in node.shape:
        size *= length
    return size * node.dtype.itemsize if node.dtype else 0
