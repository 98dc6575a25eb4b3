"""TIES: trim each task vector to its largest entries, elect a sign per element, combine those that agree.

It lowers to one node per idea, so that what a changed parameter does not touch stays as it was:

    task_vector ──┬── kth_magnitude ──┐                              base ──┐
                  └───────────────── trim ── (rescale) ── consensus ────── add
                      density                 rescale     weight, normalize, lambda
"""

from __future__ import annotations

from mergeflow.methods.combination import combine
from mergeflow.methods.schema import Call, Emit, Handle, Method, Operand, Parameter
from mergeflow.methods.sparsify import Thinning, sparsify, survivors
from mergeflow.methods.task_arithmetic import base_of, delta_of
from mergeflow.methods.values import flag, number, text


def lower(call: Call, emit: Emit) -> Handle:
    """Trimmed deltas, their consensus, one addition; models of weight or density 0 take no part."""
    base = base_of(call)
    if call.size == 0 or number(call.parameters, "lambda") == 0.0:
        return base

    # A pruned or weightless model has V = 0 everywhere: it elects no sign and adds neither value nor weight.
    weighted = [(operand, number(operand.parameters, "weight")) for operand in call.operands]
    voters = [(operand, weight) for operand, weight in weighted if weight != 0.0 and kept(operand, call.size) > 0]
    if not voters:
        return base

    rescale = flag(call.parameters, "rescale")
    trimmed = [trim(delta_of(operand, base, emit), operand, call, rescale, emit) for operand, _ in voters]
    weights = [weight for _, weight in voters]
    return emit("add", [base, elect(trimmed, weights, call, emit)])


def kept(operand: Operand, size: int) -> int:
    """How many of `size` elements survive: max(1, trunc(density * size)), none at density 0, all from 1 on."""
    return survivors(number(operand.parameters, "density"), size)


def trim(delta: Handle, operand: Operand, call: Call, rescale: bool, emit: Emit) -> Handle:
    """The delta with all but its largest magnitudes zeroed and, if asked, its sum of magnitudes restored."""
    thinning = Thinning(number(operand.parameters, "density"), rescale="l1" if rescale else None)
    trimmed = sparsify("magnitude", delta, thinning, call, emit)
    assert trimmed is not None  # an operand of which nothing is kept does not get here
    return trimmed


def elect(deltas: list[Handle], weights: list[float], call: Call, emit: Emit) -> Handle:
    """The merged delta. A single model has nobody to agree with: its delta, weighted."""
    scale = number(call.parameters, "lambda")
    normalize = flag(call.parameters, "normalize")
    if len(deltas) == 1:
        return combine(emit, [(deltas[0], scale if normalize else scale * weights[0])])
    settings: dict[str, object] = {"weights": weights, "normalize": normalize, "lambda": scale}
    election = text(call.parameters, "election")
    if election == "weighted":
        return emit("consensus", deltas, **settings)
    return emit("consensus_by", deltas, election=election, **settings)


ELECTION = Parameter(
    "election",
    "string",
    "shared",
    "weighted",
    meaning="whose sign wins: that of the sum of weighted task vectors (mergekit), of the unweighted ones (the paper), "
    "or of most models (count)",
    choices=("weighted", "unweighted", "count"),
)


TIES = Method(
    name="ties",
    title="TIES",
    summary="Trims task vectors to their largest entries and sums, element by element, those of the majority's sign.",
    formula="D_i = the density * size largest of X_i - B; M = the sum of w_i * D_i over the models that have the sign "
    "of sum(w_i * D_i); R = B + lambda * M, with normalize M is divided by the sum of those models' w_i",
    paper="https://arxiv.org/abs/2306.01708",
    parameters=(
        Parameter("weight", "float", "non_base", meaning="factor of this model's task vector"),
        Parameter("density", "float", "non_base", 1.0, 0.0, 1.0, meaning="share of the task vector that is kept"),
        Parameter("normalize", "bool", "shared", True, meaning="divide by the weights of the models that agree"),
        Parameter("rescale", "bool", "shared", False, meaning="scale a trimmed task vector to its old L1 norm"),
        Parameter("lambda", "float", "shared", 1.0, meaning="factor of the merged task vector"),
        ELECTION,
        Parameter("int8_mask", "bool", "shared", False, meaning="accepted as in mergekit; has no effect"),
    ),
    lower=lower,
    base="required",
    takes=("weights", "delta"),
    gives="weights",
    example="""\
merge_method: ties
base_model: ./models/base
models:
  - {model: ./models/math, parameters: {weight: 0.6, density: 0.5}}
  - {model: ./models/chat, parameters: {weight: 0.4, density: 0.3}}
""",
)
