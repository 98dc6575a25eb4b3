"""DARE, Model Breadcrumbs and DELLA: sparsified task vectors, summed as they are or by elected signs as in TIES.

                 sparsifier           deltas are summed      signs are elected first
    DARE         random               dare_linear            dare_ties
    Breadcrumbs  magnitude_outliers   breadcrumbs            breadcrumbs_ties
    DELLA        della                della_linear           della

They differ in nothing else, and share their nodes with each other, with `ties` and with the step `sparsify`:

    task_vector ── sparsifier ── (rescale) ──┬── weighted_sum ──┐       base ──┐
                   density, ...              └── consensus ─────┴───────────── add
                                                 weight, normalize, lambda
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from mergeflow.methods.combination import combine
from mergeflow.methods.schema import Call, Emit, Handle, Method, Parameter
from mergeflow.methods.sparsify import RESCALE_BY, sparsify, thinning_of
from mergeflow.methods.task_arithmetic import SMALLEST_DIVISOR, base_of, delta_of
from mergeflow.methods.ties import ELECTION, elect
from mergeflow.methods.values import flag, number

Combine = Callable[[list[tuple[Handle, float]], Call, Emit], Handle]


def _lower(sparsifier: str, merge: Combine, call: Call, emit: Emit) -> Handle:
    """Sparsified deltas, their sum or consensus, one addition; models of weight or density 0 take no part."""
    base = base_of(call)
    if call.size == 0 or number(call.parameters, "lambda") == 0.0:
        return base

    terms: list[tuple[Handle, float]] = []
    for operand in call.operands:
        weight = number(operand.parameters, "weight")
        if weight != 0.0:
            thinning = thinning_of(operand.parameters, call.parameters)
            kept = sparsify(sparsifier, delta_of(operand, base, emit), thinning, call, emit)
            terms += [] if kept is None else [(kept, weight)]
    return emit("add", [base, merge(terms, call, emit)]) if terms else base


def _summed(terms: list[tuple[Handle, float]], call: Call, emit: Emit) -> Handle:
    """lambda * sum(w_i D_i) / q; q counts the weights of all models, those too of which nothing was kept."""
    total = math.fsum(number(operand.parameters, "weight") for operand in call.operands)
    divisor = total if flag(call.parameters, "normalize") and abs(total) >= SMALLEST_DIVISOR else 1.0
    factor = number(call.parameters, "lambda") / divisor
    return combine(emit, [(delta, factor * weight) for delta, weight in terms])


def _elected(terms: list[tuple[Handle, float]], call: Call, emit: Emit) -> Handle:
    return elect([delta for delta, _ in terms], [weight for _, weight in terms], call, emit)


_WEIGHT = Parameter("weight", "float", "non_base", meaning="factor of this model's task vector")
_DENSITY = Parameter("density", "float", "non_base", 1.0, 0.0, 1.0, meaning="share of the task vector that is kept")
_GAMMA = Parameter("gamma", "float", "non_base", 0.01, 0.0, 1.0, meaning="share cut from the top, as outliers")
_EPSILON = Parameter(
    "epsilon", "float", "non_base", 0.15, 0.0, 1.0, meaning="probabilities lie within this much of density"
)
_LAMBDA = Parameter("lambda", "float", "shared", 1.0, meaning="factor of the merged task vector")
_INT8_MASK = Parameter("int8_mask", "bool", "shared", False, meaning="accepted as in mergekit; has no effect")


def _method(
    name: str,
    title: str,
    summary: str,
    formula: str,
    paper: str,
    sparsifier: str,
    *extra: Parameter,
    elects: bool,
    normalize: bool = False,
    rescale: bool = True,
) -> Method:
    """One row of the family: `normalize` and `rescale` are the defaults, `extra` the sparsifier's own parameters."""
    divided = "of the models that agree" if elects else "of all models, unless it is zero"
    by_probability = (RESCALE_BY,) if rescale else ()
    own = {"breadcrumbs": ", gamma: 0.01", "della": ", epsilon: 0.15"}.get(name.partition("_")[0], "")
    return Method(
        name=name,
        title=title,
        summary=summary,
        formula=formula,
        paper=paper,
        parameters=(
            _WEIGHT,
            _DENSITY,
            *extra,
            Parameter("normalize", "bool", "shared", normalize, meaning=f"divide by the sum of the weights {divided}"),
            Parameter("rescale", "bool", "shared", rescale, meaning="scale what is kept of a task vector"),
            _LAMBDA,
            *by_probability,
            *((ELECTION,) if elects else ()),
            _INT8_MASK,
        ),
        lower=partial(_lower, sparsifier, _elected if elects else _summed),
        base="required",
        takes=("weights", "delta"),
        gives="weights",
        example=f"""\
merge_method: {name}
base_model: ./models/base
models:
  - {{model: ./models/math, parameters: {{weight: 0.6, density: 0.5{own}}}}}
  - {{model: ./models/chat, parameters: {{weight: 0.4, density: 0.3{own}}}}}
""",
    )


_SUM = "R = B + lambda * sum(w_i * D_i), with normalize divided by sum(w_i)"
_CONSENSUS = (
    "R = B + lambda * sum(w_i * D_i) over the models that have the sign of sum(w_i * D_i), with normalize "
    "divided by the sum of those models' w_i"
)
_DARE = "D_i = X_i - B, each entry kept with probability density; with rescale, * sum(|X_i - B|) / sum(|D_i|); "
_BREADCRUMBS = "D_i = the density * n largest of X_i - B, but for the gamma * n largest of all; "
_DELLA = (
    "D_i = X_i - B, an entry of rank r of n in its row kept with probability density - epsilon + 2 * epsilon * "
    "(r - 1) / (n - 1); with rescale, * sum(|X_i - B|) / sum(|D_i|); "
)

DARE_LINEAR = _method(
    "dare_linear",
    "Linear DARE",
    "Drops entries of task vectors at random, rescales the rest, and adds the weighted task vectors to the base.",
    _DARE + _SUM,
    "https://arxiv.org/abs/2311.03099",
    "random",
    elects=False,
)
DARE_TIES = _method(
    "dare_ties",
    "DARE TIES",
    "Drops entries of task vectors at random, rescales the rest, and sums those of the majority's sign.",
    _DARE + _CONSENSUS,
    "https://arxiv.org/abs/2311.03099",
    "random",
    elects=True,
)
BREADCRUMBS = _method(
    "breadcrumbs",
    "Model Breadcrumbs",
    "Cuts the smallest entries of task vectors and their largest outliers, and adds the rest, weighted, to the base.",
    _BREADCRUMBS + _SUM,
    "https://arxiv.org/abs/2312.06795",
    "magnitude_outliers",
    _GAMMA,
    elects=False,
    rescale=False,
)
BREADCRUMBS_TIES = _method(
    "breadcrumbs_ties",
    "Model Breadcrumbs with TIES",
    "Cuts the smallest entries of task vectors and their largest outliers, and sums those of the majority's sign.",
    _BREADCRUMBS + _CONSENSUS,
    "https://arxiv.org/abs/2312.06795",
    "magnitude_outliers",
    _GAMMA,
    elects=True,
    rescale=False,
)
DELLA_LINEAR = _method(
    "della_linear",
    "Linear DELLA",
    "Drops entries of task vectors at random, small ones more often, and adds the weighted task vectors to the base.",
    _DELLA + _SUM,
    "https://arxiv.org/abs/2406.11617",
    "della",
    _EPSILON,
    elects=False,
)
DELLA = _method(
    "della",
    "DELLA",
    "Drops entries of task vectors at random, small ones more often, and sums those of the majority's sign.",
    _DELLA + _CONSENSUS,
    "https://arxiv.org/abs/2406.11617",
    "della",
    _EPSILON,
    elects=True,
    normalize=True,
)
