"""Arcee Fusion: takes over from another model only what changed most.

base, other ── fusion_importance ──┬── kth_magnitude (Q1, median, Q3) ──┐
                                   └─────────────────────────────── fuse ── result
"""

from __future__ import annotations

from mergeflow.methods.schema import Call, Emit, Handle, Method
from mergeflow.methods.task_arithmetic import base_of

# Quartiles as mergekit takes them: the element at trunc(f * (n - 1)) in rising order, without interpolation.
QUARTERS = (1, 2, 3)


def lower(call: Call, emit: Emit) -> Handle:
    """The importance of each element, its quartiles, the selection; a model fused with itself is itself."""
    base = base_of(call)
    (operand,) = call.operands
    if call.size == 0 or operand.handle == base:
        return base

    importance = emit("fusion_importance", [operand.handle, base])
    quartiles = [emit("kth_magnitude", [importance], k=from_the_top(quarter, call.size)) for quarter in QUARTERS]
    return emit("fuse", [operand.handle, base, importance, *quartiles])


def from_the_top(quarter: int, size: int) -> int:
    """The rank, counted from the largest, of the element at trunc(quarter / 4 * (size - 1)) in rising order."""
    return size - quarter * (size - 1) // 4


ARCEE_FUSION = Method(
    name="arcee_fusion",
    title="Arcee Fusion",
    summary="Takes over those parameters of the other model that changed most, weighed by how much their row changed.",
    formula="R = X where I >= median(I) + 1.5 * (Q3(I) - Q1(I)), else B; I = |X - B| * k, "
    "k = the KL divergence of the softmaxes of X's and B's rows",
    paper="https://www.arcee.ai/blog/meet-mergekit-v0-1-arcee-fusion-expanded-model-support-multi-gpu-acceleration",
    parameters=(),
    lower=lower,
    base="required",
    minimum=1,
    maximum=1,
    takes=("weights",),
    gives="weights",
    example="""\
merge_method: arcee_fusion
base_model: ./models/base
models:
  - {model: ./models/math}
""",
)
