"""Spherical linear interpolation between two models, each tensor taken as one vector."""

from __future__ import annotations

from mergeflow.methods.schema import Call, Emit, Handle, Method, Parameter
from mergeflow.methods.values import number


def lower(call: Call, emit: Emit) -> Handle:
    """The Gram matrix of base and operand, then their combination; at t = 0 and t = 1, one of the two as it is."""
    (operand,) = call.operands
    base = call.base
    if base is None:
        raise ValueError("slerp needs a base_model: it is where t = 0 lies")

    t = number(call.parameters, "t")
    if t == 0.0 or call.size == 0:
        return base
    if t == 1.0:
        return operand.handle
    gram = emit("gram", [base, operand.handle])
    return emit("slerp", [base, operand.handle, gram], t=t)


SLERP = Method(
    name="slerp",
    title="SLERP",
    summary="Moves from the base to the other model along the arc between them, keeping their norms.",
    formula="R = (sin((1-t)a) * A + sin(t*a) * Z) / sin(a), a = angle(A, Z); (1-t) * A + t * Z when |cos(a)| > 0.9995",
    paper="https://en.wikipedia.org/wiki/Slerp",
    parameters=(
        Parameter("t", "float", "shared", meaning="0 is the base, 1 the other model; beyond them it extrapolates"),
    ),
    lower=lower,
    base="required",
    minimum=1,
    maximum=1,
    takes=("weights", "delta"),
    gives="same",
    example="""\
merge_method: slerp
base_model: ./models/chat
models:
  - {model: ./models/chat}
  - {model: ./models/math}
parameters:
  t: [0, 0.5, 1]
""",
)
