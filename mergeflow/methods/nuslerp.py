"""NuSLERP: spherical interpolation of two models by their weights, or of their task vectors on a base."""

from __future__ import annotations

from mergeflow.methods.relative import alone, placed, vectors
from mergeflow.methods.schema import Call, Emit, Handle, Method, Parameter
from mergeflow.methods.values import flag, number

# mergekit's rule: of weights that sum to less than this, neither model has the larger share.
SMALLEST_SUM = 1e-6


def lower(call: Call, emit: Emit) -> Handle:
    """The vectors, their Gram matrices, one combination, and the base; at t = 0 and t = 1, an operand as it is."""
    first, second = call.operands
    t = position(number(first.parameters, "weight"), number(second.parameters, "weight"))
    if t == 0.0 or call.size == 0:
        return alone(call, first, emit)
    if t == 1.0:
        return alone(call, second, emit)

    return placed(call, _between(vectors(call, emit), t, call, emit), emit)


def _between(pair: list[Handle], t: float, call: Call, emit: Emit) -> Handle:
    """The interpolation of two tensors, of their rows, or of their columns. A tensor of one vector is taken whole."""
    by_columns = flag(call.parameters, "nuslerp_row_wise") and len(call.shape) > 1
    length = 1 if not call.shape else call.shape[0] if by_columns else call.shape[-1]
    if flag(call.parameters, "nuslerp_flatten") or length == call.size:
        return emit("nuslerp", [*pair, emit("gram", pair)], t=t)

    if by_columns:
        columns = call.size // length
        grams = emit("column_grams", pair, columns=columns)
        return emit("nuslerp_columns", [*pair, grams], t=t, columns=columns)
    return emit("nuslerp_rows", pair, t=t)


def position(first: float, second: float) -> float:
    """Where between two models of these weights the result lies: 0 is the first, 1 the second."""
    total = first + second
    return 0.5 if abs(total) < SMALLEST_SUM else second / total


NUSLERP = Method(
    name="nuslerp",
    title="NuSLERP",
    summary="Moves along the arc between two models, or between their task vectors, as far as their weights say.",
    formula="R = (sin((1-t)a) * P + sin(t*a) * Q) / sin(a), a = angle(P, Q), t = w_2 / (w_1 + w_2); "
    "(1-t) * P + t * Q when P and Q are opposite (cos(a) < -0.9995); P, Q = X_1, X_2, or with a base "
    "X_1 - B, X_2 - B, and then B is added",
    paper="https://en.wikipedia.org/wiki/Slerp",
    parameters=(
        Parameter("weight", "float", "non_base", meaning="this model's share of the way; the two need not sum to one"),
        Parameter(
            "nuslerp_flatten", "bool", "shared", True, meaning="take a tensor as one vector, not each of its rows"
        ),
        Parameter(
            "nuslerp_row_wise",
            "bool",
            "shared",
            False,
            meaning="unflattened, vectors are columns, not rows: in mergekit too, whatever the name says",
        ),
    ),
    lower=lower,
    base="optional",
    minimum=2,
    maximum=2,
    takes=("weights", "delta"),
    gives="same",
    example="""\
merge_method: nuslerp
models:
  - {model: ./models/math, parameters: {weight: 0.3}}
  - {model: ./models/chat, parameters: {weight: 0.5}}
""",
)
