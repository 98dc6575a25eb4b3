"""Methods that work on models as they are or, given a base, on what each adds to it.

without a base    R = f(X_1, ..., X_k)               weights of weights, a delta of deltas
with a base B     R = B + f(X_1 - B, ..., X_k - B)   weights; an input that is a delta is used as it is
"""

from __future__ import annotations

from mergeflow.methods.schema import Call, Emit, Handle, Operand
from mergeflow.methods.task_arithmetic import delta_of


def vectors(call: Call, emit: Emit) -> list[Handle]:
    """What the method is applied to: the operands, or their differences from the base."""
    base = call.base
    if base is None:
        return [operand.handle for operand in call.operands]
    return [delta_of(operand, base, emit) for operand in call.operands]


def placed(call: Call, vector: Handle, emit: Emit) -> Handle:
    """The method's result as a tensor of the call: on its base, when it has one."""
    return vector if call.base is None else emit("add", [call.base, vector])


def alone(call: Call, operand: Operand, emit: Emit) -> Handle:
    """One operand as the result: its own tensor, bytes and all, unless it is a delta that a base waits for."""
    return placed(call, operand.handle, emit) if operand.type == "delta" else operand.handle
