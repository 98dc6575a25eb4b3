"""Carrying over the difference of two models: all of it, or only what is new.

Three models with three roles fit mergekit's fields by their order: `base_model` is what is added to (or what both
others came from), and `models` lists the other two in the order the formula names them.
"""

from __future__ import annotations

from mergeflow.methods.combination import combine
from mergeflow.methods.schema import Call, Emit, Handle, Method, Parameter
from mergeflow.methods.task_arithmetic import base_of, delta_of
from mergeflow.methods.values import number


def lower_add_difference(call: Call, emit: Emit) -> Handle:
    """The task vector of the second model to the first, scaled, one addition."""
    base = base_of(call)
    alpha = number(call.parameters, "alpha")
    if alpha == 0.0 or call.size == 0:
        return base
    tuned, origin = call.operands
    delta = emit("task_vector", [tuned.handle, origin.handle])
    return emit("add", [base, combine(emit, [(delta, alpha)])])


def lower_perpendicular(call: Call, emit: Emit) -> Handle:
    """Two task vectors, their Gram matrix, their combination, one addition; at alpha = 0 the first model as it is."""
    base = base_of(call)
    first = call.operands[0]
    if call.size == 0:
        return base

    alpha = number(call.parameters, "alpha")
    if alpha == 0.0:
        return first.handle if first.type == "weights" else emit("add", [base, first.handle])
    deltas = [delta_of(operand, base, emit) for operand in call.operands]
    gram = emit("gram", deltas)
    return emit("add", [base, emit("perpendicular", [*deltas, gram], alpha=alpha)])


ADD_DIFFERENCE = Method(
    name="add_difference",
    title="Add Difference",
    summary="Adds to a model what training changed in another: the difference of two models from elsewhere.",
    formula="R = A + alpha * (X_1 - X_2); A is the base_model, X_1 the trained model, X_2 what it was trained from",
    paper="https://arxiv.org/abs/2212.04089",
    parameters=(Parameter("alpha", "float", "shared", 1.0, meaning="factor of the difference; negative to take away"),),
    lower=lower_add_difference,
    base="required",
    minimum=2,
    maximum=2,
    takes=("weights",),
    gives="weights",
    example="""\
merge_method: add_difference
base_model: ./models/chat
models:
  - {model: ./models/math}
  - {model: ./models/base}
parameters: {alpha: 0.7}
""",
)

PERPENDICULAR = Method(
    name="perpendicular",
    title="Perpendicular",
    summary="Adds to the first model only what of the second's task vector is orthogonal to the first's, per tensor.",
    formula="R = B + D_1 + alpha * (D_2 - p * D_1), p = D_1.D_2 / D_1.D_1 (0 if D_1 = 0), D_i = X_i - B, each tensor "
    "one vector",
    parameters=(Parameter("alpha", "float", "shared", 1.0, meaning="factor of what is added; 0 is the first model"),),
    lower=lower_perpendicular,
    base="required",
    minimum=2,
    maximum=2,
    takes=("weights", "delta"),
    gives="weights",
    example="""\
merge_method: perpendicular
base_model: ./models/base
models:
  - {model: ./models/chat}
  - {model: ./models/math}
parameters: {alpha: 0.8}
""",
)
