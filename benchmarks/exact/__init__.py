"""The methods' formulas on whole tensors in float64, with no thought of speed: what an exact merge would be.

    exact("ties", models, base, own, shared) -> Tensor          all float64, any shape

They are written from the definitions (docs/methods.md) and share no line with the kernels. `own` has each model's
parameters, `shared` those of the merge; every parameter a formula reads must be given. What is drawn at random cannot
be computed: methods that drop elements by chance are given the masks of what stayed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from benchmarks.exact import arcs, deltas, pairs
from benchmarks.exact.inputs import Inputs, Parameters, weighted


def exact(
    method: str,
    models: Sequence[Tensor],
    base: Tensor | None,
    own: Sequence[Parameters],
    shared: Parameters,
    masks: Sequence[Tensor] = (),
) -> Tensor:
    """The merge by a method's formula, in float64."""
    wide = [model.double() for model in models]
    inputs = Inputs(wide, None if base is None else base.double(), own, shared, [mask.double() for mask in masks])
    return FORMULAS[method](inputs)


FORMULAS: Mapping[str, Callable[[Inputs], Tensor]] = {
    "linear": arcs.linear,
    "arithmetic": lambda it: weighted(it.models, it.each("weight")),
    "passthrough": arcs.passthrough,
    "slerp": arcs.slerp,
    "nuslerp": arcs.nuslerp,
    "multislerp": arcs.multislerp,
    "karcher": arcs.karcher,
    "model_stock": arcs.model_stock,
    "task_arithmetic": lambda it: deltas.added(it, it.deltas, elect=False),
    "ties": lambda it: deltas.added(it, deltas.trimmed(it), elect=True),
    "breadcrumbs": lambda it: deltas.added(it, deltas.without_outliers(it), elect=False),
    "breadcrumbs_ties": lambda it: deltas.added(it, deltas.without_outliers(it), elect=True),
    "dare_linear": lambda it: deltas.added(it, deltas.by_chance(it), elect=False),
    "dare_ties": lambda it: deltas.added(it, deltas.by_chance(it), elect=True),
    "della_linear": lambda it: deltas.added(it, deltas.by_chance(it), elect=False),
    "della": lambda it: deltas.added(it, deltas.by_chance(it), elect=True),
    "sce": deltas.sce,
    "ram": deltas.ram,
    "ramplus_tl": deltas.ramplus_tl,
    "nearswap": pairs.nearswap,
    "arcee_fusion": pairs.arcee_fusion,
    "magmax": deltas.magmax,
    "emr": deltas.emr,
    "consensus_ta": deltas.consensus_ta,
    "consensus_ties": deltas.consensus_ties,
    "add_difference": pairs.add_difference,
    "perpendicular": pairs.perpendicular,
    "geometric_median": arcs.geometric_median,
}
