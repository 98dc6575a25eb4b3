"""What each model contributes to a sum of task vectors, V_i = w_i * D_i, and how a merged delta joins its base."""

from __future__ import annotations

from mergeflow.methods.combination import combine
from mergeflow.methods.schema import Call, Emit, Handle
from mergeflow.methods.task_arithmetic import base_of, delta_of
from mergeflow.methods.values import number


def contributions(call: Call, emit: Emit) -> list[tuple[Handle, float]]:
    """The task vectors and their weights, in listed order; a model of weight 0 takes no part.

    None when the merged delta counts for nothing (``lambda`` is 0, or there are no elements): then nothing is read.
    """
    base = base_of(call)
    if call.size == 0 or number(call.parameters, "lambda") == 0.0:
        return []
    weighted = [(operand, number(operand.parameters, "weight")) for operand in call.operands]
    return [(delta_of(operand, base, emit), weight) for operand, weight in weighted if weight != 0.0]


def added(call: Call, delta: Handle, factor: float, emit: Emit) -> Handle:
    """base + factor * delta: the base itself when the factor is 0."""
    base = base_of(call)
    return base if factor == 0.0 else emit("add", [base, combine(emit, [(delta, factor)])])
