"""Model Stock: between the base and the mean of its fine-tunes, as near to the mean as their task vectors agree."""

from __future__ import annotations

from mergeflow.methods.schema import Call, Emit, Handle, Method, Parameter
from mergeflow.methods.task_arithmetic import base_of, delta_of
from mergeflow.methods.values import flag


def lower(call: Call, emit: Emit) -> Handle:
    """Deltas, their Gram matrix (or one for each row), one multiple of their mean, one addition."""
    base = base_of(call)
    if call.size == 0:
        return base

    deltas = [delta_of(operand, base, emit) for operand in call.operands]
    has_rows = len(call.shape) > 1 and call.shape[-1] < call.size
    if flag(call.parameters, "filter_wise") and has_rows:
        return emit("add", [base, emit("model_stock_rows", deltas)])
    return emit("add", [base, emit("model_stock", [*deltas, emit("gram", deltas)])])


MODEL_STOCK = Method(
    name="model_stock",
    title="Model Stock",
    summary="Moves from the base to the mean of its fine-tunes, as far as the angles between their task vectors say.",
    formula="R = B + t * sum(D_i) / N, D_i = X_i - B, t = N * c / (1 + (N-1) * c), c = the mean of "
    "D_i.D_j / max(|D_i| * |D_j|, 1e-6) over all pairs; t = 0 when 1 + (N-1) * c < 1e-6, and no less than -20",
    paper="https://arxiv.org/abs/2403.19522",
    parameters=(
        Parameter("filter_wise", "bool", "shared", False, meaning="find t for each row of a matrix, not for a tensor"),
    ),
    lower=lower,
    base="required",
    minimum=2,
    takes=("weights", "delta"),
    gives="weights",
    example="""\
merge_method: model_stock
base_model: ./models/base
models:
  - {model: ./models/math}
  - {model: ./models/chat}
""",
)
