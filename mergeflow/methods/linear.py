"""Linear merging: the weighted average of models, tensor by tensor ("model soups")."""

from __future__ import annotations

import math

from mergeflow.methods.combination import combine
from mergeflow.methods.schema import Call, Emit, Handle, Method, Parameter
from mergeflow.methods.values import flag, number

# Below this share of the weights' own magnitude, their sum is what rounding left over, not a number to divide by.
NEGLIGIBLE_SUM = 1e-8


def lower(call: Call, emit: Emit) -> Handle:
    """One weighted sum with coefficients w_i / sum(w), or w_i; ValueError when the sum to divide by is zero."""
    weights = [number(operand.parameters, "weight") for operand in call.operands]
    total = divisor(weights) if flag(call.parameters, "normalize") else 1.0
    return combine(
        emit, [(operand.handle, weight / total) for operand, weight in zip(call.operands, weights, strict=True)]
    )


def divisor(weights: list[float], switch: str = "normalize") -> float:
    """The sum of the weights; ValueError when it is zero, naming the parameter that asks to divide by it."""
    total = math.fsum(weights)
    if abs(total) <= NEGLIGIBLE_SUM * math.fsum(abs(weight) for weight in weights):
        listed = ", ".join(f"{weight:g}" for weight in weights)
        raise ValueError(f"the weights ({listed}) sum to zero, so they cannot be normalized; set {switch}: false")
    return total


LINEAR = Method(
    name="linear",
    title="Linear",
    summary="The weighted average of models.",
    formula="R = sum(w_i * X_i) / sum(w_i); without normalize, R = sum(w_i * X_i)",
    paper="https://arxiv.org/abs/2203.05482",
    parameters=(
        Parameter("weight", "float", "input", meaning="how much this model counts; may be negative"),
        Parameter("normalize", "bool", "shared", True, meaning="divide by the sum of the weights"),
    ),
    lower=lower,
    base="ignored",
    takes=("weights", "delta"),
    gives="same",
    example="""\
merge_method: linear
models:
  - {model: ./models/math, parameters: {weight: 0.6}}
  - {model: ./models/chat, parameters: {weight: 0.4}}
""",
)
