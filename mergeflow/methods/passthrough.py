"""Passthrough: one model's tensors as they are, or multiplied by a number."""

from __future__ import annotations

from mergeflow.methods.combination import combine
from mergeflow.methods.schema import Call, Emit, Handle, Method, Parameter
from mergeflow.methods.values import optional_number


def lower(call: Call, emit: Emit) -> Handle:
    """The operand itself, or its product with `scale`."""
    (operand,) = call.operands
    scale = optional_number(operand.parameters, "scale")
    return operand.handle if scale is None else combine(emit, [(operand.handle, scale)])


PASSTHROUGH = Method(
    name="passthrough",
    title="Passthrough",
    summary="One model, unchanged or scaled; what a layer stack is made of.",
    formula="R = X, or scale * X",
    parameters=(
        Parameter("scale", "float", "input", None, meaning="multiplies the tensor; left out, its bytes are copied"),
    ),
    lower=lower,
    base="ignored",
    minimum=1,
    maximum=1,
    takes=("weights", "delta"),
    gives="same",
    example="""\
merge_method: passthrough
models:
  - model: ./models/chat
    parameters:
      scale:
        - {filter: o_proj, value: 0.5}
        - {value: 1.0}
""",
)
