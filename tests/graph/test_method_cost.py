"""What a method costs is what its example's program does, and nothing that somebody wrote down."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mergeflow.graph.method_cost import MethodCost, method_cost
from mergeflow.methods.table import METHODS


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_cost(name: str) -> None:
    """Each has an example that compiles; it reads every input at least once, and less when its statistics are known."""
    cost = method_cost(METHODS[name])
    assert cost is not None
    assert cost.inputs >= 1
    assert cost.bytes_read >= cost.bytes_read_again >= 1
    assert cost.passes >= cost.passes_again >= 1


def test_ties_reads_its_inputs_twice() -> None:
    """Once for the thresholds and once to merge; the second is all there is to do when the thresholds are known."""
    assert method_cost(METHODS["ties"]) == MethodCost(
        inputs=3,
        passes=2,
        bytes_read=6.0,
        passes_again=1,
        bytes_read_again=3.0,
        statistics=(("kth_magnitude", 2),),
        unit="pointwise",
        random=False,
    )


def test_the_middle_of_a_gradient_is_measured() -> None:
    """slerp's example goes from one model to the other: at its ends it would copy one of them."""
    cost = method_cost(METHODS["slerp"])
    assert cost is not None
    assert (cost.inputs, cost.passes) == (2, 2)


@pytest.mark.parametrize("example", ["", "merge_method: linear", "merge_method: [", "mergeflow: 1\nsteps: {}"])
def test_an_example_that_says_nothing_has_no_cost(example: str) -> None:
    """A method of somebody else's may have no example, or a broken one; it is listed all the same."""
    assert method_cost(replace(METHODS["linear"], example=example)) is None


def test_an_example_of_several_steps_is_measured_at_its_last() -> None:
    """A whole recipe may be an example: a delta that feeds task arithmetic is still two tensors to read."""
    example = """\
mergeflow: 1
steps:
  skill: {task_vector: {model: ./math, base: ./base}}
  sum: {merge_method: task_arithmetic, base_model: ./base, models: [{model: skill, parameters: {weight: 0.5}}]}
"""
    cost = method_cost(replace(METHODS["task_arithmetic"], example=example))
    assert cost is not None
    assert (cost.inputs, cost.passes, cost.bytes_read) == (2, 1, 2.0)
