"""Consensus merging: a merged task vector without the elements that too few tasks need (TALL masks).

    task_vectors ──┬── (kth_magnitude ── trim) ── weighted_sum or consensus ──┬──────────────┐       base ──┐
                   │      density                  weight                    │              │              │
                   └──────────────────────────────────────────────────── tall_mask(s) ── tall_vote ────── add
                                                                          tall_lambda    consensus_k     lambda

The sum S that the masks look at is the plain one: normalizing it would change neither side of their comparison, if the
task vectors are divided by the same number. `consensus_k` is held to the number of models that take part, so that of
one model all is kept; at 0 there are no masks, and what is left is task arithmetic, or TIES.
"""

from __future__ import annotations

import math

from mergeflow.methods.combination import combine
from mergeflow.methods.contributions import added
from mergeflow.methods.schema import Call, Emit, Handle, Method, Operand, Parameter
from mergeflow.methods.task_arithmetic import SMALLEST_DIVISOR, base_of, delta_of
from mergeflow.methods.ties import kept, trim
from mergeflow.methods.values import flag, number, whole


def lower_consensus_ta(call: Call, emit: Emit) -> Handle:
    """Task vectors, their weighted sum, a mask for each, the vote of the masks, one addition."""
    base = base_of(call)
    scale = number(call.parameters, "lambda")
    weights = [number(operand.parameters, "weight") for operand in call.operands]
    voters = [(operand, weight) for operand, weight in zip(call.operands, weights, strict=True) if weight != 0.0]
    if not voters or call.size == 0 or scale == 0.0:
        return base

    total = combine(emit, [(delta_of(operand, base, emit), weight) for operand, weight in voters])
    divisor = math.fsum(weights)
    if not flag(call.parameters, "normalize") or abs(divisor) < SMALLEST_DIVISOR:
        divisor = 1.0
    return added(call, _voted(total, total, voters, call, emit), scale / divisor, emit)


def lower_consensus_ties(call: Call, emit: Emit) -> Handle:
    """The same, around the merged task vector of TIES; the masks compare it with the task vectors before trimming."""
    base = base_of(call)
    scale = number(call.parameters, "lambda")
    weighted = [(operand, number(operand.parameters, "weight")) for operand in call.operands]
    voters = [(operand, weight) for operand, weight in weighted if weight != 0.0 and kept(operand, call.size) > 0]
    if not voters or call.size == 0 or scale == 0.0:
        return base

    trimmed = [trim(delta_of(operand, base, emit), operand, call, False, emit) for operand, _ in voters]
    weights = [weight for _, weight in voters]
    total = _elected(trimmed, weights, False, emit)
    merged = _elected(trimmed, weights, True, emit) if flag(call.parameters, "normalize") else total
    return added(call, _voted(merged, total, voters, call, emit), scale, emit)


def _elected(trimmed: list[Handle], weights: list[float], normalize: bool, emit: Emit) -> Handle:
    """TIES' merged task vector; of a single model its own, weighted."""
    if len(trimmed) == 1:
        return combine(emit, [(trimmed[0], 1.0 if normalize else weights[0])])
    return emit("consensus", trimmed, weights=weights, normalize=normalize, **{"lambda": 1.0})


def _voted(merged: Handle, total: Handle, voters: list[tuple[Operand, float]], call: Call, emit: Emit) -> Handle:
    """`merged` where enough of the voters' masks of `total` are set, else 0. A single voter's mask is 1 everywhere."""
    least = min(whole(call.parameters, "consensus_k"), len(voters))
    if least == 0 or len(voters) == 1:
        return merged
    masks = [_mask(total, operand, weight, base_of(call), emit) for operand, weight in voters]
    return emit("tall_vote", [merged, *masks], least=least)


def _mask(total: Handle, operand: Operand, weight: float, base: Handle, emit: Emit) -> Handle:
    tall_lambda = number(operand.parameters, "tall_lambda")
    return emit("tall_mask", [total, delta_of(operand, base, emit)], weight=weight, tall_lambda=tall_lambda)


WEIGHT = Parameter("weight", "float", "non_base", meaning="factor of this model's task vector")
TALL_LAMBDA = Parameter(
    "tall_lambda", "float", "non_base", 0.4, 0.0, meaning="how strict this model's mask is; the paper takes 0.2 to 0.6"
)
SHARED = (
    Parameter("consensus_k", "int", "shared", 2, 0.0, meaning="how many models must need an element for it to stay"),
    Parameter("lambda", "float", "shared", 1.0, meaning="factor of the merged task vector"),
)

CONSENSUS_TA = Method(
    name="consensus_ta",
    title="Consensus Task Arithmetic",
    summary="Task arithmetic without the elements that fewer than consensus_k models need, by their TALL masks.",
    formula="R = B + lambda * S where sum(m_i) >= consensus_k, else B; S = sum(V_i), V_i = w_i * (X_i - B), "
    "m_i = [|V_i| >= tall_lambda_i * |S - V_i|]; with normalize, S is divided by sum(w_i) after the masks",
    paper="https://arxiv.org/abs/2405.07813",
    parameters=(
        WEIGHT,
        TALL_LAMBDA,
        Parameter("normalize", "bool", "shared", False, meaning="divide by the sum of the weights, unless it is zero"),
        *SHARED,
    ),
    lower=lower_consensus_ta,
    base="required",
    takes=("weights", "delta"),
    gives="weights",
    example="""\
merge_method: consensus_ta
base_model: ./models/base
models:
  - {model: ./models/math, parameters: {weight: 1.0, tall_lambda: 0.4}}
  - {model: ./models/chat, parameters: {weight: 1.0, tall_lambda: 0.6}}
  - {model: ./models/code, parameters: {weight: 1.0}}
parameters: {consensus_k: 2, lambda: 0.3}
""",
)

CONSENSUS_TIES = Method(
    name="consensus_ties",
    title="Consensus TIES",
    summary="TIES without the elements that fewer than consensus_k models need, by their TALL masks.",
    formula="R = B + lambda * S where sum(m_i) >= consensus_k, else B; S = TIES' sum of the trimmed V_i of the "
    "majority's sign, V_i = w_i * (X_i - B), m_i = [|V_i| >= tall_lambda_i * |S - V_i|] with V_i not trimmed; with "
    "normalize, S is divided by the agreeing models' sum(w_i) after the masks",
    paper="https://arxiv.org/abs/2405.07813",
    parameters=(
        WEIGHT,
        Parameter("density", "float", "non_base", 1.0, 0.0, 1.0, meaning="share of the task vector TIES keeps"),
        TALL_LAMBDA,
        Parameter("normalize", "bool", "shared", False, meaning="divide by the weights of the models that agree"),
        *SHARED,
    ),
    lower=lower_consensus_ties,
    base="required",
    takes=("weights", "delta"),
    gives="weights",
    example="""\
merge_method: consensus_ties
base_model: ./models/base
models:
  - {model: ./models/math, parameters: {weight: 1.0, density: 0.2}}
  - {model: ./models/chat, parameters: {weight: 1.0, density: 0.2}}
  - {model: ./models/code, parameters: {weight: 1.0, density: 0.2}}
parameters: {consensus_k: 2, lambda: 0.8}
""",
)
