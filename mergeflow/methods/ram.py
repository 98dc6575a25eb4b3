"""RAM and RAM+: changes that one model alone made are kept whole, changes that several made are averaged.

task_vectors ──┬── overlap_counts ──┐              base ──┐
               └──────────────── ram, ram_plus ──────── add
                   epsilon          r, alpha
"""

from __future__ import annotations

from mergeflow.methods.schema import Call, Emit, Handle, Method, Parameter
from mergeflow.methods.task_arithmetic import base_of, delta_of
from mergeflow.methods.values import number

EPSILON = Parameter("epsilon", "float", "shared", 1e-5, 0.0, meaning="a change no larger than this counts as none")


def lower_ram(call: Call, emit: Emit) -> Handle:
    """Task vectors, their mean over the models that changed an element, one addition."""
    base = base_of(call)
    if call.size == 0:
        return base
    merged = emit("ram", _deltas(call, base, emit), epsilon=number(call.parameters, "epsilon"))
    return emit("add", [base, merged])


def lower_ram_plus(call: Call, emit: Emit) -> Handle:
    """The same with strengthened changes; without a model to share with, or anything to strengthen, RAM itself."""
    base = base_of(call)
    r, alpha, epsilon = (number(call.parameters, name) for name in ("r", "alpha", "epsilon"))
    if call.size == 0 or len(call.operands) == 1 or r * alpha == 0.0:
        return lower_ram(call, emit)

    deltas = _deltas(call, base, emit)
    counts = emit("overlap_counts", deltas, epsilon=epsilon)
    merged = emit("ram_plus", [*deltas, counts], r=r, alpha=alpha, epsilon=epsilon)
    return emit("add", [base, merged])


def _deltas(call: Call, base: Handle, emit: Emit) -> list[Handle]:
    return [delta_of(operand, base, emit) for operand in call.operands]


RAM = Method(
    name="ram",
    title="Reinforced Agent Merging",
    summary="Keeps what one model alone changed as it is, and averages what several changed over those.",
    formula="R = B + sum(a_i * D_i) / max(sum(a_i), 1), a_i = [|D_i| > epsilon], D_i = X_i - B",
    paper="https://arxiv.org/abs/2601.13572",
    parameters=(EPSILON,),
    lower=lower_ram,
    base="required",
    takes=("weights", "delta"),
    gives="weights",
    example="""\
merge_method: ram
base_model: ./models/base
models:
  - {model: ./models/math}
  - {model: ./models/chat}
""",
)

RAM_PLUS = Method(
    name="ramplus_tl",
    title="Reinforced Agent Merging Plus (Tensor-Local)",
    summary="RAM in which what a model alone changed is strengthened by how much it shares with others, per tensor.",
    formula="R = B + M; M = l_i * D_i where model i alone has |D_i| > epsilon, their mean where several have, else 0; "
    "l_i = 1 + r * min(shared_i / max(unique_i, epsilon), alpha), the counts of such elements of model i",
    paper="https://arxiv.org/abs/2601.13572",
    parameters=(
        Parameter("r", "float", "shared", 0.1, meaning="how much the ratio of shared to unique changes strengthens"),
        Parameter("alpha", "float", "shared", 0.2, 0.0, meaning="the largest ratio that counts"),
        EPSILON,
    ),
    lower=lower_ram_plus,
    base="required",
    takes=("weights", "delta"),
    gives="weights",
    example="""\
merge_method: ramplus_tl
base_model: ./models/base
models:
  - {model: ./models/math}
  - {model: ./models/chat}
parameters: {r: 0.3, alpha: 0.5}
""",
)
