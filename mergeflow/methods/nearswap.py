"""NearSwap: what the other model has nearby is taken over; what is further away moves the base by t at most."""

from __future__ import annotations

from mergeflow.methods.schema import Call, Emit, Handle, Method, Parameter
from mergeflow.methods.values import number


def lower(call: Call, emit: Emit) -> Handle:
    """One operation; at t = 0 (and below, as in mergekit) the base as it is."""
    (operand,) = call.operands
    base = call.base
    if base is None:
        raise ValueError("nearswap needs a base_model: it is what moves towards the other")

    t = number(call.parameters, "t")
    if t <= 0.0 or call.size == 0:
        return base
    return emit("nearswap", [base, operand.handle], t=t)


NEARSWAP = Method(
    name="nearswap",
    title="NearSwap",
    summary="Takes the other model's weight where it is within t of the base's; elsewhere moves t towards it.",
    formula="R = w * X + (1 - w) * B, w = min(t / |X - B|, 1): X held between B - t and B + t",
    paper="https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
    parameters=(Parameter("t", "float", "shared", meaning="the largest change of a weight; 0 is the base"),),
    lower=lower,
    base="required",
    minimum=1,
    maximum=1,
    takes=("weights", "delta"),
    gives="same",
    example="""\
merge_method: nearswap
base_model: ./models/chat
models:
  - {model: ./models/math}
parameters: {t: 0.0001}
""",
)
