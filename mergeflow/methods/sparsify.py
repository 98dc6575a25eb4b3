"""Sparsifiers: one delta in, one delta with fewer entries out. Alone as a step, and inside the methods that merge them.

    magnitude            the density * n largest                        (TIES)
    random               each with probability density                  (DARE)
    magnitude_outliers   the density * n largest after the gamma * n    (Model Breadcrumbs)
                         largest of all
    della                each with a probability that rises with its    (DELLA)
                         rank in its row, from density - epsilon to density + epsilon

A delta at density 1 or more is kept as it is, whatever the other parameters say. Where nothing would be kept there is
no node, so that nobody reads a tensor of zeros. What is kept may be rescaled: to the sum of magnitudes that it had
before (``l1``, what mergekit does for all of them), or by the probability to be kept (``density``, what the papers of
DARE and DELLA do: then a sum of many entries keeps its expected value).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from mergeflow.methods.combination import combine
from mergeflow.methods.schema import Call, Emit, Handle, Method, Parameter, Value
from mergeflow.methods.values import flag, number, text

RESCALINGS = ("l1", "density")


@dataclass(frozen=True, slots=True)
class Thinning:
    """How a delta is thinned out. `rescale` is one of RESCALINGS, or None for not at all."""

    density: float
    gamma: float = 0.0
    epsilon: float = 0.0
    rescale: str | None = None


Sparsifier = Callable[[Handle, Thinning, Call, Emit], Handle | None]


def sparsify(method: str, delta: Handle, thinning: Thinning, call: Call, emit: Emit) -> Handle | None:
    """The thinned delta, rescaled if asked; None when no entry is kept.

    Raises:
        ValueError: the parameters make no probabilities (`della`).
    """
    return SPARSIFIERS[method](delta, thinning, call, emit)


def thinning_of(own: Mapping[str, Value | None], shared: Mapping[str, Value | None]) -> Thinning:
    """The thinning that a model's own parameters and a method's shared ones ask for."""
    return Thinning(
        density=number(own, "density"),
        gamma=number(own, "gamma") if "gamma" in own else 0.0,
        epsilon=number(own, "epsilon") if "epsilon" in own else 0.0,
        rescale=(text(shared, "rescale_by") if "rescale_by" in shared else "l1") if flag(shared, "rescale") else None,
    )


def survivors(density: float, size: int) -> int:
    """How many elements `magnitude` keeps: max(1, trunc(density * size)), none at density 0, all from 1 on."""
    return 0 if density <= 0.0 else min(size, max(1, int(density * size)))


def keep_largest(delta: Handle, count: int, emit: Emit) -> Handle:
    """The delta with all but its `count` largest magnitudes, fewer than there are, zeroed."""
    return emit("trim", [delta, emit("kth_magnitude", [delta], k=count)])


def restore_l1(thinned: Handle, delta: Handle, emit: Emit) -> Handle:
    """The thinned delta, scaled to the sum of magnitudes of the whole one."""
    return emit("rescale", [thinned, emit("magnitude_sum", [delta]), emit("magnitude_sum", [thinned])])


def _magnitude(delta: Handle, thinning: Thinning, call: Call, emit: Emit) -> Handle | None:
    count = survivors(thinning.density, call.size)
    if count == 0 or count == call.size:
        return delta if count else None
    return _rescaled(keep_largest(delta, count, emit), delta, thinning, emit)


def _random(delta: Handle, thinning: Thinning, call: Call, emit: Emit) -> Handle | None:
    if not 0.0 < thinning.density < 1.0:
        return delta if thinning.density > 0.0 else None
    dropped = emit("drop", [delta], density=thinning.density, seed=call.seed)
    return _rescaled(dropped, delta, thinning, emit)


def _magnitude_outliers(delta: Handle, thinning: Thinning, call: Call, emit: Emit) -> Handle | None:
    if thinning.density >= 1.0:
        return delta
    count, outliers = int(thinning.density * call.size), int(thinning.gamma * call.size)
    if count <= 0:
        return None
    # So many are always kept: where density and gamma are more than 1 together, fewer outliers are cut.
    outliers = min(outliers, call.size - count)
    kept = emit("kth_magnitude", [delta], k=count + outliers)
    if outliers <= 0:
        return _rescaled(emit("trim", [delta, kept]), delta, thinning, emit)
    largest = emit("kth_magnitude", [delta], k=outliers)
    return _rescaled(emit("trim_outliers", [delta, largest, kept]), delta, thinning, emit)


def _della(delta: Handle, thinning: Thinning, call: Call, emit: Emit) -> Handle | None:
    density, epsilon = thinning.density, thinning.epsilon
    if not 0.0 < density < 1.0:
        return delta if density > 0.0 else None
    if density - epsilon <= 0.0 or density + epsilon >= 1.0:
        raise ValueError(
            f"epsilon {epsilon:g} is too large for density {density:g}: entries are kept with probabilities from "
            "density - epsilon to density + epsilon, which must lie between 0 and 1"
        )
    by_probability = thinning.rescale == "density"
    parameters = {"density": density, "epsilon": epsilon, "divide": by_probability, "seed": call.seed}
    pruned = emit("magprune", [delta], **parameters)
    return pruned if by_probability else _rescaled(pruned, delta, thinning, emit)


def _rescaled(thinned: Handle, delta: Handle, thinning: Thinning, emit: Emit) -> Handle:
    if thinning.rescale == "l1":
        return restore_l1(thinned, delta, emit)
    return combine(emit, [(thinned, 1.0 / thinning.density if thinning.rescale == "density" else 1.0)])


SPARSIFIERS: Mapping[str, Sparsifier] = MappingProxyType(
    {"magnitude": _magnitude, "random": _random, "magnitude_outliers": _magnitude_outliers, "della": _della}
)


def lower(call: Call, emit: Emit) -> Handle:
    """One sparsifier; zeros where it keeps nothing."""
    (operand,) = call.operands
    if call.size == 0:
        return operand.handle
    thinning = thinning_of(call.parameters, call.parameters)
    kept = sparsify(text(call.parameters, "method"), operand.handle, thinning, call, emit)
    return emit("scale", [operand.handle], factor=0.0) if kept is None else kept


RESCALE_BY = Parameter(
    "rescale_by",
    "string",
    "shared",
    "l1",
    meaning="what rescale does: restore the L1 norm (mergekit), or divide by the probability to be kept (the papers)",
    choices=RESCALINGS,
)

SPARSIFY = Method(
    name="sparsify",
    title="Sparsify",
    summary="A delta of which a share of the entries is kept: the largest, random ones, or something in between.",
    formula="R = m * D; m keeps the density * n largest (magnitude), each with probability density (random), the "
    "largest after the gamma * n outliers (magnitude_outliers), or each with probability density - epsilon + "
    "2 * epsilon * (rank - 1) / (n - 1) of its row (della); with rescale, * sum(|D|) / sum(|m * D|), or / the "
    "probability",
    parameters=(
        Parameter(
            "method", "string", "shared", "magnitude", meaning="which entries are kept", choices=tuple(SPARSIFIERS)
        ),
        Parameter("density", "float", "shared", minimum=0.0, maximum=1.0, meaning="share of the delta that is kept"),
        Parameter("gamma", "float", "shared", 0.01, 0.0, 1.0, meaning="magnitude_outliers: share cut from the top"),
        Parameter(
            "epsilon", "float", "shared", 0.15, 0.0, 1.0, meaning="della: most that probabilities are off density"
        ),
        Parameter("rescale", "bool", "shared", False, meaning="scale what is kept, see rescale_by"),
        RESCALE_BY,
    ),
    lower=lower,
    base="ignored",
    minimum=1,
    maximum=1,
    takes=("delta",),
    gives="delta",
    example="""\
sparsify: {delta: math_skill, method: magnitude, density: 0.3}
""",
)
