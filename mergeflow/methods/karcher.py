"""The Karcher mean: the point of the sphere nearest to all models' directions, at the mean of their lengths."""

from __future__ import annotations

from mergeflow.methods.schema import Call, Emit, Handle, Method, Parameter
from mergeflow.methods.values import number, whole


def lower(call: Call, emit: Emit) -> Handle:
    """One Gram matrix and one combination; a single model is the result."""
    handles = [operand.handle for operand in call.operands]
    if len(handles) == 1 or call.size == 0:
        return handles[0]
    return emit(
        "karcher",
        [*handles, emit("gram", handles)],
        max_iter=whole(call.parameters, "max_iter"),
        tol=number(call.parameters, "tol"),
    )


KARCHER = Method(
    name="karcher",
    title="Karcher Mean",
    summary="The mean of models on the sphere: of all directions the one with the least squared arcs to the models'.",
    formula="R = mean(|X_i|) * u, u = the unit vector with the least sum(angle(u, X_i)^2)",
    paper="https://arxiv.org/abs/2603.04972",
    parameters=(
        Parameter("max_iter", "int", "shared", 10, 0, meaning="at most so many steps from the normalized mean"),
        Parameter(
            "tol", "float", "shared", 1e-5, 0.0, meaning="stop at a step, and leave out angles and models, this small"
        ),
    ),
    lower=lower,
    base="ignored",
    takes=("weights", "delta"),
    gives="same",
    example="""\
merge_method: karcher
models:
  - {model: ./models/math}
  - {model: ./models/chat}
  - {model: ./models/code}
""",
)
