"""Multi-SLERP: the spherical mean of any number of models, or of their task vectors on a base."""

from __future__ import annotations

from mergeflow.methods.linear import divisor
from mergeflow.methods.relative import alone, placed, vectors
from mergeflow.methods.schema import Call, Emit, Handle, Method, Parameter
from mergeflow.methods.values import flag, number


def lower(call: Call, emit: Emit) -> Handle:
    """The vectors, their Gram matrix, one combination, and the base; a single model is the result, as in mergekit."""
    weights = [number(operand.parameters, "weight") for operand in call.operands]
    if len(call.operands) == 1 or call.size == 0:
        return alone(call, call.operands[0], emit)

    total = divisor(weights, "normalize_weights") if flag(call.parameters, "normalize_weights") else 1.0
    directions = vectors(call, emit)
    mean = emit(
        "multislerp",
        [*directions, emit("gram", directions)],
        weights=[weight / total for weight in weights],
        eps=number(call.parameters, "eps"),
    )
    return placed(call, mean, emit)


MULTISLERP = Method(
    name="multislerp",
    title="Multi-SLERP",
    summary="The weighted mean of models (or of task vectors) as directions, at the weighted mean of their lengths.",
    formula="R = cos(eps) * sum(w_i * |X_i|) * m / |m|, m = sum(w_i * X_i / (|X_i| + eps)); sum(w_i * X_i) where "
    "m = 0; w_i divided by sum(w_i) when normalized; with a base, X_i - B in place of X_i, and then B is added",
    paper="https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
    parameters=(
        Parameter("weight", "float", "non_base", meaning="how much this model counts; may be negative"),
        Parameter("normalize_weights", "bool", "shared", True, meaning="divide the weights by their sum"),
        Parameter("eps", "float", "shared", 1e-8, 0.0, meaning="added to lengths that are divided by"),
    ),
    lower=lower,
    base="optional",
    takes=("weights", "delta"),
    gives="same",
    example="""\
merge_method: multislerp
models:
  - {model: ./models/math, parameters: {weight: 0.3}}
  - {model: ./models/chat, parameters: {weight: 0.5}}
  - {model: ./models/code, parameters: {weight: 0.2}}
""",
)
