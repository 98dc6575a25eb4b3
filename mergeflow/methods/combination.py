"""Sums of tensors with coefficients: the step that linear merges, task arithmetic and single deltas share.

Coefficients are Python floats (float64) here; a kernel rounds each once to the format it computes in. What would not
change a value is left out of the graph: an operand whose coefficient is zero, and a product with one. So a merge that
comes down to one of its inputs is that input, and its bytes are copied.
"""

from __future__ import annotations

from collections.abc import Sequence

from mergeflow.methods.schema import Emit, Handle


def combine(emit: Emit, terms: Sequence[tuple[Handle, float]]) -> Handle:
    """The sum of coefficient x value over `terms`, at least one of them, with as few operations as it needs."""
    taking_part = [(handle, coefficient) for handle, coefficient in terms if coefficient != 0.0] or list(terms[:1])
    if len(taking_part) > 1:
        handles = [handle for handle, _ in taking_part]
        return emit("weighted_sum", handles, coefficients=[coefficient for _, coefficient in taking_part])

    handle, coefficient = taking_part[0]
    return handle if coefficient == 1.0 else emit("scale", [handle], factor=coefficient)
