"""SCE: select the entries in which models disagree most, calculate a weight per model, erase minority signs.

task_vectors ──┬── variance ── largest_share ──┐                                base ──┐
               └───────────────────────────── select ── gram ── sce (of all) ───────── add
                                             select_topk
"""

from __future__ import annotations

from mergeflow.methods.schema import Call, Emit, Handle, Method, Parameter
from mergeflow.methods.task_arithmetic import base_of, delta_of
from mergeflow.methods.values import number


def lower(call: Call, emit: Emit) -> Handle:
    """Task vectors, the selection by variance, weights from what is selected, one consensus, one addition."""
    base = base_of(call)
    share = number(call.parameters, "select_topk")
    # One model alone varies nowhere: all is selected, or nothing.
    if call.size == 0 or share <= 0.0 or (len(call.operands) == 1 and share < 1.0):
        return base

    deltas = [delta_of(operand, base, emit) for operand in call.operands]
    if len(deltas) == 1:
        return emit("add", [base, deltas[0]])
    if share < 1.0:
        variances = emit("variance", deltas)
        largest = emit("largest_share", [variances], share=share)
        deltas = [emit("select", [delta, variances, largest]) for delta in deltas]
    energies = [emit("gram", [delta]) for delta in deltas]
    return emit("add", [base, emit("sce", [*deltas, *energies], size=call.size)])


SCE = Method(
    name="sce",
    title="SCE",
    summary="Selects the entries in which the models disagree most, weighs models by what is selected of them, and "
    "erases what has the minority's sign.",
    formula="D_i = X_i - B where the variance over the models is among the select_topk largest of those that are not "
    "0, else 0; w_i = mean(D_i^2), m_i = [sign(D_i) = sign(sum(D_j))]; "
    "R = B + sum(m_i * w_i * D_i) / sum(m_i * w_i)",
    paper="https://arxiv.org/abs/2408.07990",
    parameters=(
        Parameter("select_topk", "float", "shared", 1.0, 0.0, 1.0, meaning="share of the entries that is merged"),
        Parameter("int8_mask", "bool", "shared", False, meaning="accepted as in mergekit; has no effect"),
    ),
    lower=lower,
    base="required",
    takes=("weights", "delta"),
    gives="weights",
    example="""\
merge_method: sce
base_model: ./models/base
models:
  - {model: ./models/math}
  - {model: ./models/chat}
parameters: {select_topk: 0.1}
""",
)
