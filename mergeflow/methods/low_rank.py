"""Low rank: a delta reduced to its largest singular values, as a step of its own."""

from __future__ import annotations

from mergeflow.methods.schema import Call, Emit, Handle, Method, Parameter
from mergeflow.methods.values import optional_number


def lower(call: Call, emit: Emit) -> Handle:
    """One operation on the whole tensor; a delta that has the rank already, or no matrix in it, as it is.

    Raises:
        ValueError: not exactly one of rank and energy is given.
    """
    (operand,) = call.operands
    rank, energy = call.parameters["rank"], optional_number(call.parameters, "energy")
    if (rank is None) == (energy is None):
        raise ValueError("low_rank needs either a rank or an energy")

    highest = min(call.shape[-2:]) if len(call.shape) > 1 else 0
    if call.size == 0 or highest <= 1 or (isinstance(rank, int) and rank >= highest):
        return operand.handle
    if energy is not None and energy >= 1.0:
        return operand.handle
    wanted: dict[str, object] = {"rank": rank} if energy is None else {"energy": energy}
    return emit("low_rank", [operand.handle], **wanted)


LOW_RANK = Method(
    name="low_rank",
    title="Low rank",
    summary="A task vector reduced, matrix by matrix, to its largest singular values. Vectors stay as they are.",
    formula="R = sum(s_i * u_i * v_i') over the largest singular values of D = sum(s_i * u_i * v_i'): rank of them, or "
    "as few as have the share energy of sum(s_i^2)",
    paper="https://arxiv.org/abs/0909.4061",
    parameters=(
        Parameter("rank", "int", "shared", None, minimum=1, meaning="how many singular values stay"),
        Parameter("energy", "float", "shared", None, 0.0, 1.0, meaning="or: which share of the sum of squares stays"),
    ),
    lower=lower,
    base="ignored",
    minimum=1,
    maximum=1,
    takes=("delta",),
    gives="delta",
    example="""\
low_rank: {delta: math_skill, rank: 32}
""",
)
