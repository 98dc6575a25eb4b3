"""Arithmetic: a sum of weights and deltas, each with a factor of either sign.

    0.3 * math_skill - 0.2 * toxic_skill                a delta, from deltas alone
    chat + 0.3 * math_skill                             weights
    math + chat - base                                  weights

Where weights take part the result is weights, so their factors must sum to one: base + deltas is a model, and so is
math + chat - base; 0.8 * math is a model shrunk, and math - base is a delta. A weighted average that is to be divided
by its sum is `linear`; a difference of models is `task_vector`.
"""

from __future__ import annotations

import math

from mergeflow.methods.combination import combine
from mergeflow.methods.schema import Call, Emit, Handle, Method, Parameter
from mergeflow.methods.values import number

# Factors such as 1/3 written to six digits are meant to sum to one.
ROUNDING = 1e-5


def lower(call: Call, emit: Emit) -> Handle:
    """One weighted sum; ValueError when the factors of weights do not sum to one."""
    weighted = [(operand, number(operand.parameters, "weight")) for operand in call.operands]
    models = [weight for operand, weight in weighted if operand.type == "weights"]
    if models and abs(math.fsum(models) - 1.0) > ROUNDING:
        raise ValueError(_not_a_model(models))
    return combine(emit, [(operand.handle, weight) for operand, weight in weighted])


def _not_a_model(factors: list[float]) -> str:
    listed = ", ".join(f"{factor:g}" for factor in factors)
    total = math.fsum(factors)
    fix = (
        "for a difference of models, use task_vector steps" if abs(total) <= ROUNDING else "for an average, use linear"
    )
    return f"the weights of the inputs that are models ({listed}) sum to {total:g}, and must sum to 1; {fix}"


ARITHMETIC = Method(
    name="arithmetic",
    title="Arithmetic",
    summary="Adds and subtracts models and task vectors, each with its factor.",
    formula="R = sum(w_i * X_i), where the w_i of models (not of deltas) sum to one",
    paper="https://arxiv.org/abs/2212.04089",
    parameters=(Parameter("weight", "float", "input", meaning="the factor of this input; negative to subtract it"),),
    lower=lower,
    base="ignored",
    takes=("weights", "delta"),
    gives="mixed",
    example="""\
merge_method: arithmetic
models:
  - {model: ./models/math, parameters: {weight: 1.0}}
  - {model: ./models/chat, parameters: {weight: 1.0}}
  - {model: ./models/base, parameters: {weight: -1.0}}
""",
)
