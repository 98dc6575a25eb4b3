"""Scale: a delta multiplied by a number, as a step of its own."""

from __future__ import annotations

from mergeflow.methods.combination import combine
from mergeflow.methods.schema import Call, Emit, Handle, Method, Parameter
from mergeflow.methods.values import number


def lower(call: Call, emit: Emit) -> Handle:
    """One product; at factor 1 the delta as it is."""
    (operand,) = call.operands
    return combine(emit, [(operand.handle, number(call.parameters, "factor"))])


SCALE = Method(
    name="scale",
    title="Scale",
    summary="A task vector multiplied by a number: below 1 weaker, above 1 stronger, negative the other way.",
    formula="R = factor * D",
    paper="https://arxiv.org/abs/2212.04089",
    parameters=(Parameter("factor", "float", "shared", meaning="multiplies every entry of the delta"),),
    lower=lower,
    base="ignored",
    minimum=1,
    maximum=1,
    takes=("delta",),
    gives="delta",
    example="""\
scale: {delta: math_skill, factor: 0.5}
""",
)
