"""What must hold of every method: general laws over the table of methods, special ones over the table of cases."""

from __future__ import annotations

import re

import pytest
import torch
from method_cases import CANCELLED, REFUSALS, TABLE, Case, Refusal, cases, inputs, same
from method_evaluation import BLOCKS, Model, merge
from torch import Tensor

from mergeflow.methods.table import METHODS

EVERY = pytest.mark.parametrize("case", cases(), ids=str)
DTYPES = (torch.float32, torch.float64)

# Three blocks of 65536 elements, the last of them short; rows that no block is a multiple of.
MANY = (3, 43733)
SHAPES: tuple[tuple[int, ...], ...] = (
    (),
    (0,),
    (0, 4),
    (4, 0),
    (1,),
    (63,),
    (7, 9),
    (1, 5),
    (5, 1),
    (3, 4, 5),
    (1, 2, 3, 4),
)


def only(law: str) -> pytest.MarkDecorator:
    """The cases for which the table has the law."""
    return pytest.mark.parametrize("case", [case for case in cases() if getattr(case, law)], ids=str)


def check(result: Tensor, expected: Tensor, exactness: str) -> None:
    if exactness == "exact":
        assert same(result, expected)
    else:
        torch.testing.assert_close(result, expected, rtol=2e-6, atol=2e-6 * float(expected.abs().max()))


def test_every_method_has_its_laws() -> None:
    """A new method says in the table which laws hold of it."""
    assert {case.method for case in TABLE} == set(METHODS)


@pytest.mark.parametrize("dtype", DTYPES)
@EVERY
def test_blocks_leave_no_trace(case: Case, dtype: torch.dtype) -> None:
    """A merge in blocks is the merge of whole tensors, bit for bit, for every block size."""
    tensors = inputs(case.inputs, MANY, dtype=dtype)
    whole, *cut = [case.merge(tensors, block) for block in BLOCKS]
    assert all(same(result, whole) for result in cut)


@EVERY
def test_inputs_are_untouched(case: Case) -> None:
    """A merge writes to its result and to nothing else."""
    tensors = inputs(case.inputs, (7, 9))
    before = [tensor.clone() for tensor in tensors]
    case.merge(tensors)
    assert all(map(same, tensors, before))


@pytest.mark.parametrize("dtype", DTYPES)
@EVERY
def test_any_shape_merges(case: Case, dtype: torch.dtype) -> None:
    """Single numbers, nothing at all, rows and columns of one: the result has the inputs' shape and is finite."""
    for shape in SHAPES:
        result = case.merge(inputs(case.inputs, shape, dtype=dtype))
        assert (result.shape, result.dtype) == (shape, dtype)
        assert bool(result.isfinite().all()), shape


@EVERY
def test_finite_models_give_finite_results(case: Case) -> None:
    """Zero, equal, collinear and opposite models, and one that is zero: no NaN, no infinity, nothing out of bounds."""
    base, *others = inputs(case.inputs, (7, 9))
    zero = torch.zeros_like(base)
    for name, degenerate in {
        "all zero": [zero] * case.inputs,
        "all equal": [base] * case.inputs,
        "a zero base": [zero, *others],
        "a zero model": [base, *others[:-1], zero],
        "collinear": [base * (i + 1) for i in range(case.inputs)],
        "collinear over a zero base": [zero, *(base * (i + 1) for i in range(len(others)))],
        "opposite": [base if i % 2 else -base for i in range(case.inputs)],
        "opposite over a zero base": [zero, *(base if i % 2 else -base for i in range(len(others)))],
        "nearly opposite": [base if i % 2 else -base * (1 + 1e-6) + 1e-6 for i in range(case.inputs)],
        "tiny": [tensor * 1e-30 for tensor in (base, *others)],
        "one element": [base, *((base + torch.eye(7, 9)) for _ in others)],
    }.items():
        result = case.merge([tensor.clone() for tensor in degenerate[: case.inputs]])
        assert bool(result.isfinite().all()), name
        assert float(result.abs().max()) <= 100 * max(float(tensor.abs().max()) for tensor in degenerate), name


@pytest.mark.parametrize("dtype", DTYPES)
@only("equal")
def test_equal_models_give_that_model(case: Case, dtype: torch.dtype) -> None:
    """There is nothing to merge where all models say the same."""
    (model,) = inputs(1, (7, 9), dtype=dtype)
    check(case.merge([model.clone() for _ in range(case.inputs)]), model, case.equal or "")


@only("order")
def test_the_order_of_models_does_not_matter(case: Case) -> None:
    """Models in another order, each with its own parameters, merge to the same, but for the rounding of sums."""
    tensors = inputs(case.inputs if case.order != "two" else 2 + case.base, (31, 33))
    backwards = range(len(tensors) - case.base)[::-1]
    check(case.merge_in_order(tensors, backwards), case.merge(tensors), "close")


@only("order")
def test_two_models_commute(case: Case) -> None:
    """Two models in either order merge to the same, bit for bit where no coefficient is rounded on the way."""
    tensors = inputs(2 + case.base, (31, 33))
    there, back = case.merge(tensors), case.merge_in_order(tensors, (1, 0))
    check(back, there, "close" if case.order == "close" else "exact")


@only("scaling")
def test_twice_the_models_give_twice_the_result(case: Case) -> None:
    """No method knows the unit that weights are measured in."""
    tensors = inputs(case.inputs, (31, 33))
    check(case.merge([2 * tensor for tensor in tensors]), 2 * case.merge(tensors), case.scaling or "")


@only("ends")
def test_at_its_ends_a_merge_is_one_of_its_inputs(case: Case) -> None:
    """t = 0 is the base and t = 1 the other model, bit for bit."""
    base, model = inputs(case.inputs, (31, 33))
    for changed, end in case.ends:
        assert same(case.merge([base, model], **changed), base if end == "base" else model)


@only("still")
def test_where_nothing_is_added_the_base_stays(case: Case) -> None:
    """A weight, density or factor of zero leaves the base as it is, bit for bit."""
    tensors = inputs(case.inputs, (31, 33))
    for changed in case.still:
        assert same(case.merge(tensors, **changed), tensors[0]), changed


@pytest.mark.parametrize("refusal", [row for row in REFUSALS if row.method in METHODS], ids=str)
def test_parameters_that_make_no_merge_are_named(refusal: Refusal) -> None:
    """A sum of weights that cannot be divided by, and the like, is an error that says which numbers it was."""
    with pytest.raises(ValueError, match=re.escape(refusal.message)) as error:
        refusal.merge()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("case", [case for case in CANCELLED if case.method in METHODS], ids=str)
def test_weights_that_cancel_do_not_blow_up(case: Case) -> None:
    """Where a rule says what a sum of zero stands for, the result is finite and near its inputs."""
    base, first, second = inputs(3, (31, 33))
    weighed = [Model(first, {**case.own, "weight": 0.5}), Model(second, {**case.own, "weight": -0.5})]
    result = merge(case.method, weighed, base if case.base else None, **case.shared)
    assert bool(result.isfinite().all())
    assert float(result.abs().max()) <= 2 * max(float(tensor.abs().max()) for tensor in (base, first, second))
