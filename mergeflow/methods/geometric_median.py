"""The geometric median of models: the mean's robust relative, which one model far from the others cannot drag away."""

from __future__ import annotations

import math

from mergeflow.methods.schema import Call, Emit, Handle, Method, Parameter
from mergeflow.methods.values import number, whole


def lower(call: Call, emit: Emit) -> Handle:
    """Differences from the first model, their Gram matrix, one combination, added to it; a single model is the result.

    Models of weight 0 take no part. The median moves with its models, so the differences have theirs; and only those
    can be told apart in the Gram matrix of models that are nearly the same. ValueError when no weight is left.
    """
    weighted = [(operand.handle, number(operand.parameters, "weight")) for operand in call.operands]
    voters = [(handle, weight) for handle, weight in weighted if weight != 0.0]
    if not voters:
        raise ValueError("every weight is 0: the median needs a model of positive weight")
    if math.fsum(weight for _, weight in voters) <= 0.0 or any(weight < 0.0 for _, weight in voters):
        raise ValueError("a weight is negative: nothing has a least distance from it")

    (first, _), *others = voters
    if not others or call.size == 0:
        return first
    differences = [emit("task_vector", [handle, first]) for handle, _ in others]
    median = emit(
        "geometric_median",
        [*differences, emit("gram", differences)],
        weights=[weight for _, weight in voters],
        max_iter=whole(call.parameters, "max_iter"),
        tol=number(call.parameters, "tol"),
    )
    return emit("add", [first, median])


GEOMETRIC_MEDIAN = Method(
    name="geometric_median",
    title="Geometric Median",
    summary="The point with the least sum of distances to the models: a mean that an outlier does not pull away.",
    formula="R = the Y with the least sum(w_i * |X_i - Y|), by Y <- sum(w_i * X_i / d_i) / sum(w_i / d_i), "
    "d_i = |X_i - Y|",
    paper="https://arxiv.org/abs/1912.13445",
    parameters=(
        Parameter("weight", "float", "input", 1.0, 0.0, meaning="how much this model's distance counts"),
        Parameter("max_iter", "int", "shared", 100, 0, meaning="at most so many steps from the weighted mean"),
        Parameter("tol", "float", "shared", 1e-9, 0.0, meaning="stop at a step this small beside the largest distance"),
    ),
    lower=lower,
    base="ignored",
    takes=("weights", "delta"),
    gives="same",
    example="""\
merge_method: geometric_median
models:
  - {model: ./models/math}
  - {model: ./models/chat}
  - {model: ./models/code, parameters: {weight: 0.5}}
""",
)
