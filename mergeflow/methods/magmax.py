"""MagMax: of all task vectors, each element is taken from the one that changed it most."""

from __future__ import annotations

from mergeflow.methods.contributions import added, contributions
from mergeflow.methods.schema import Call, Emit, Handle, Method, Parameter
from mergeflow.methods.task_arithmetic import base_of
from mergeflow.methods.values import number


def lower(call: Call, emit: Emit) -> Handle:
    """Task vectors, one selection, one addition; models of weight 0 take no part."""
    taking_part = contributions(call, emit)
    if not taking_part:
        return base_of(call)

    scale = number(call.parameters, "lambda")
    deltas, weights = ([delta for delta, _ in taking_part], [weight for _, weight in taking_part])
    if len(deltas) == 1:
        return added(call, deltas[0], scale * weights[0], emit)
    return added(call, emit("largest_magnitude", deltas, weights=weights), scale, emit)


MAGMAX = Method(
    name="magmax",
    title="MagMax",
    summary="Takes each element of the merged task vector from the model that changed it most.",
    formula="R = B + lambda * V_k, k the model with the largest |V_k| of that element (the first listed of equals), "
    "V_i = w_i * (X_i - B)",
    paper="https://arxiv.org/abs/2407.06322",
    parameters=(
        Parameter("weight", "float", "non_base", 1.0, meaning="factor of this model's task vector; the paper has 1"),
        Parameter("lambda", "float", "shared", 1.0, meaning="factor of the merged task vector"),
    ),
    lower=lower,
    base="required",
    takes=("weights", "delta"),
    gives="weights",
    example="""\
merge_method: magmax
base_model: ./models/base
models:
  - {model: ./models/math}
  - {model: ./models/chat}
parameters: {lambda: 0.5}
""",
)
