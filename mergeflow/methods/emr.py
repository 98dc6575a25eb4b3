"""EMR: elect one unified task vector, and for a task that is asked for, mask it to that task and rescale it.

    task_vectors ── unify ──┬──────────────────────────────────────────────────── add     the unified model
         │       weight     │                                                    lambda
         └──────────────── agreeing ── rescale (by the sums of magnitudes) ────── add     the model of one task
                            task

The unified vector is the same node whichever task is asked for, so the models of many tasks share it.
"""

from __future__ import annotations

from mergeflow.methods.combination import combine
from mergeflow.methods.contributions import added, contributions
from mergeflow.methods.schema import Call, Emit, Handle, Method, Operand, Parameter
from mergeflow.methods.task_arithmetic import base_of, delta_of
from mergeflow.methods.values import flag, number


def lower(call: Call, emit: Emit) -> Handle:
    """Task vectors, one election, the mask and factor of one task if asked for, one addition."""
    task = _task(call)
    taking_part = contributions(call, emit)
    if not taking_part:
        return base_of(call)

    unified = _unified(taking_part, emit)
    if task is not None:
        unified = _of_task(unified, delta_of(task, base_of(call), emit), emit)
    return added(call, unified, number(call.parameters, "lambda"), emit)


def _task(call: Call) -> Operand | None:
    """The model that is asked for, if one is; ValueError when several are."""
    asked = [operand for operand in call.operands if flag(operand.parameters, "task")]
    if len(asked) > 1:
        raise ValueError(
            f"'task' is true for {len(asked)} models: ask for one of them, and for the others in more steps"
        )
    return asked[0] if asked else None


def _unified(taking_part: list[tuple[Handle, float]], emit: Emit) -> Handle:
    if len(taking_part) == 1:
        return combine(emit, taking_part)
    return emit("unify", [delta for delta, _ in taking_part], weights=[weight for _, weight in taking_part])


def _of_task(unified: Handle, delta: Handle, emit: Emit) -> Handle:
    """The unified vector where it has the sign of the task's own, scaled to the task's sum of magnitudes."""
    if unified == delta:
        return delta
    masked = emit("agreeing", [unified, delta])
    return emit("rescale", [masked, emit("magnitude_sum", [delta]), emit("magnitude_sum", [masked])])


EMR = Method(
    name="emr",
    title="EMR-Merging",
    summary="Elects one task vector: per element, the sign of the sum and the largest magnitude of that sign. "
    "For a task that is asked for, masks and rescales it to that task.",
    formula="R = B + lambda * U, U = s * max(|V_i| where sign(V_i) = s), s = sign(sum(V_i)), V_i = w_i * (X_i - B); "
    "for task t, U is 0 where its sign is not D_t's, and is multiplied by sum(|D_t|) / sum(|U|)",
    paper="https://arxiv.org/abs/2405.17461",
    parameters=(
        Parameter("weight", "float", "non_base", 1.0, meaning="factor of this model's task vector; the paper has 1"),
        Parameter("task", "bool", "non_base", False, meaning="true for the one model whose task the result is for"),
        Parameter("lambda", "float", "shared", 1.0, meaning="factor of the merged task vector"),
    ),
    lower=lower,
    base="required",
    takes=("weights", "delta"),
    gives="weights",
    example="""\
merge_method: emr
base_model: ./models/base
models:
  - {model: ./models/math, parameters: {task: true}}
  - {model: ./models/chat}
""",
)
