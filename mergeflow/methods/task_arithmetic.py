"""Task vectors and task arithmetic: what fine-tuning changed, as a tensor to scale and add.

A task vector (delta) is weights minus the weights they were tuned from. Methods of this family take either: weights
have their base subtracted, a delta is used as it is, so a step that made task vectors can feed them.
"""

from __future__ import annotations

import math

from mergeflow.methods.combination import combine
from mergeflow.methods.schema import Call, Emit, Handle, Method, Operand, Parameter
from mergeflow.methods.values import flag, number

# mergekit's rule: weights that cancel to less than this are not divided by.
SMALLEST_DIVISOR = 1e-8


def base_of(call: Call) -> Handle:
    """The base of a call whose method requires one; ValueError when it has none."""
    if call.base is None:
        raise ValueError("a base_model is required: deltas are added to it")
    return call.base


def delta_of(operand: Operand, base: Handle, emit: Emit) -> Handle:
    """What the operand adds to the base: the operand itself when it is a delta, else operand - base."""
    return operand.handle if operand.type == "delta" else emit("task_vector", [operand.handle, base])


def lower_task_vector(call: Call, emit: Emit) -> Handle:
    """One subtraction."""
    (operand,) = call.operands
    return emit("task_vector", [operand.handle, base_of(call)])


def lower_task_arithmetic(call: Call, emit: Emit) -> Handle:
    """Deltas, one weighted sum with coefficients lambda * w_i / q, one addition; models of weight 0 take no part."""
    base = base_of(call)
    scale = number(call.parameters, "lambda")
    weights = [number(operand.parameters, "weight") for operand in call.operands]
    total = math.fsum(weights)
    divisor = total if flag(call.parameters, "normalize") and abs(total) >= SMALLEST_DIVISOR else 1.0

    terms = [
        (operand, scale * weight / divisor)
        for operand, weight in zip(call.operands, weights, strict=True)
        if scale * weight != 0.0
    ]
    if not terms or call.size == 0:
        return base
    return emit("add", [base, combine(emit, [(delta_of(operand, base, emit), factor) for operand, factor in terms])])


TASK_VECTOR = Method(
    name="task_vector",
    title="Task vector",
    summary="What fine-tuning changed: weights minus the weights they started from. The result is a delta.",
    formula="D = X - B",
    paper="https://arxiv.org/abs/2212.04089",
    parameters=(),
    lower=lower_task_vector,
    base="required",
    minimum=1,
    maximum=1,
    takes=("weights",),
    gives="delta",
    example="""\
task_vector: {model: ./models/math, base: ./models/base}
""",
)

TASK_ARITHMETIC = Method(
    name="task_arithmetic",
    title="Task Arithmetic",
    summary="Adds the weighted task vectors of models to their base.",
    formula="R = B + lambda * sum(w_i * D_i), D_i = X_i - B; with normalize, the sum is divided by sum(w_i)",
    paper="https://arxiv.org/abs/2212.04089",
    parameters=(
        Parameter("weight", "float", "non_base", meaning="factor of this model's task vector; negative to unlearn"),
        Parameter("normalize", "bool", "shared", False, meaning="divide by the sum of the weights, unless it is zero"),
        Parameter("lambda", "float", "shared", 1.0, meaning="factor of the merged task vector"),
        Parameter("density", "float", "non_base", 1.0, meaning="accepted as in mergekit; has no effect here"),
        Parameter("rescale", "bool", "shared", False, meaning="accepted as in mergekit; has no effect here"),
        Parameter("int8_mask", "bool", "shared", False, meaning="accepted as in mergekit; has no effect"),
    ),
    lower=lower_task_arithmetic,
    base="required",
    takes=("weights", "delta"),
    gives="weights",
    example="""\
merge_method: task_arithmetic
base_model: ./models/base
models:
  - {model: ./models/math, parameters: {weight: 0.6}}
  - {model: ./models/chat, parameters: {weight: 0.4}}
parameters: {lambda: 0.9}
""",
)
