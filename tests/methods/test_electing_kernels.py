"""What kernels that count, elect and mask promise: exact counts, ties by order, NaN kept, no trace of the blocks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from electing_cases import CASES, SIZE, inputs, model, same
from hypothesis import given, settings
from hypothesis import strategies as st
from method_evaluation import BLOCKS, Model, apply, gather_statistic, merge
from reference_overlap import changed

from mergeflow.methods.kernels.overlap import OverlapCounts, strengths
from mergeflow.methods.kernels.projection import share
from mergeflow.methods.ops import OPS

NAN, INF = math.nan, math.inf

PAIRS: list[tuple[str, dict[str, Any]]] = [
    ("add_difference", {"alpha": 0.7}),
    ("perpendicular", {"alpha": 0.7}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "own", "shared"), CASES)
def test_blocks_leave_no_trace(name: str, own: dict[str, Any], shared: dict[str, Any], dtype: torch.dtype) -> None:
    """A merge in blocks is the merge of whole tensors, bit for bit, signs of zeros included."""
    base, listed = inputs(own, dtype)
    results = [merge(name, listed, base, block, **shared) for block in BLOCKS]
    assert all(same(result, results[0]) for result in results)


@pytest.mark.parametrize(("name", "shared"), [*PAIRS, ("nearswap", {"t": 0.01}), ("emr", {})])
def test_blocks_leave_no_trace_in_the_others(name: str, shared: dict[str, Any]) -> None:
    """The same of methods of two models, and of emr for one task."""
    base, listed = inputs({}, count=1 if name == "nearswap" else 2)
    if name == "emr":
        listed[0] = Model(listed[0].tensor, {"task": True})
    results = [merge(name, listed, base, block, **shared) for block in BLOCKS]
    assert all(same(result, results[0]) for result in results)


def test_zeros_have_one_sign() -> None:
    """Where zeros of both signs meet, the result's is the same in long blocks (vectors) and short ones (scalars)."""
    zeros = torch.tensor([0.0, -0.0]).repeat(50)
    others = torch.tensor([-0.0, 0.0]).repeat(50)
    for op, parameters in (("unify", {"weights": [1.0, 1.0]}), ("agreeing", {})):
        results = [apply(OPS[op], [zeros, others], parameters, block) for block in (None, 1, 7)]
        assert all(same(result, results[0]) for result in results)
    base = torch.tensor([0.5, -0.5]).repeat(50)
    results = [apply(OPS["nearswap"], [base, zeros], {"t": 0.5}, block) for block in (None, 1, 7)]
    assert all(same(result, results[0]) for result in results)


@settings(max_examples=25)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 4), st.sampled_from([0, 1, 63, 1000]), st.sampled_from([0.0, 0.5, 9.0])
)
def test_counts_are_exact(seed: int, count: int, size: int, epsilon: float) -> None:
    """overlap_counts counts, for each model, what it changed alone and what it changed with others."""
    generator = np.random.default_rng(seed)
    deltas = [torch.from_numpy(generator.integers(-8, 9, size) / 8.0).float() for _ in range(count)]
    record = apply(OPS["overlap_counts"], deltas, {"epsilon": epsilon})
    masks = changed([delta.double().numpy() for delta in deltas], epsilon)
    times = masks.sum(axis=0)
    if size:
        assert record["unique"] == [int((mask & (times == 1)).sum()) for mask in masks]
        assert record["shared"] == [int((mask & (times > 1)).sum()) for mask in masks]
        assert all(isinstance(value, int) for values in record.values() for value in values)


def test_counts_depend_on_no_block() -> None:
    """Counts of a tensor in any blocks are those of the tensor as one, and add up to every change there is."""
    deltas = [model(seed) for seed in (1, 2, 3)]
    records = [gather_statistic(OverlapCounts(SIZE, {"epsilon": 0.5}), deltas, block) for block in (7001, *BLOCKS)]
    assert all(record == records[0] for record in records)
    unique, shared = records[0]["unique"], records[0]["shared"]
    assert isinstance(unique, list)
    assert isinstance(shared, list)
    assert [*map(sum, zip(unique, shared, strict=True))] == [int((delta.abs() > 0.5).sum()) for delta in deltas]


@pytest.mark.parametrize(
    ("unique", "shared", "epsilon", "expected"),
    [
        ([10, 5], [5, 5], 1e-5, [1.05, 1.1]),
        ([10, 5], [50, 5], 1e-5, [1.3, 1.1]),
        ([0, 5], [7, 7], 1e-5, [1.3, 1.14]),
        ([0, 0], [0, 7], 0.0, [1.3, 1.3]),
        ([1, 5], [2, 2], 4.0, [1.05, 1.04]),
    ],
)
def test_strengths_are_bounded(unique: list[float], shared: list[float], epsilon: float, expected: list[float]) -> None:
    """1 + r * shared / unique, up to alpha; epsilon is the least divisor, and nothing is divided by zero."""
    assert strengths({"unique": unique, "shared": shared}, 0.1, 3.0, epsilon) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_first_of_equals_is_taken(dtype: torch.dtype) -> None:
    """largest_magnitude takes the first of equal magnitudes; subnormals, zeros and infinities have their order."""
    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    columns = [[1, -1, 1], [-1, 1, 1], [0.0, -0.0, 0], [-0.0, 0, 0], [0, least, -least], [3, -INF, 2], [2, 2, -2.5]]
    deltas = [torch.tensor(row, dtype=dtype) for row in zip(*columns, strict=True)]
    result = apply(OPS["largest_magnitude"], deltas, {"weights": [1.0, 1.0, 1.0]})
    expected = torch.tensor([1, -1, 0.0, -0.0, least, -INF, -2.5], dtype=dtype)
    assert same(result, expected)


@pytest.mark.parametrize(("name", "own", "shared"), CASES)
def test_a_nan_is_never_hidden_nor_spread(name: str, own: dict[str, Any], shared: dict[str, Any]) -> None:
    """A NaN in one model, whatever its sign, is a NaN at its place in the merge, and nowhere else."""
    base, listed = inputs(own)
    for damage in (NAN, -NAN):
        damaged = listed[1].tensor.clone()
        damaged[1000] = math.copysign(1.0, damage) * torch.tensor(NAN)
        result = merge(name, [listed[0], Model(damaged, own), listed[2]], base, **shared)
        assert result.isnan().nonzero().tolist() == [[1000]]


def test_a_nan_stays_in_nearswap() -> None:
    """A NaN of the base or of the other model is a NaN of the result."""
    sound, damaged = torch.ones(9), torch.ones(9)
    damaged[4] = NAN
    for base, other in ((sound, damaged), (damaged, sound)):
        assert merge("nearswap", [Model(other)], base, t=0.1).isnan().nonzero().tolist() == [[4]]


def test_a_damaged_tensor_has_no_direction() -> None:
    """perpendicular with a NaN or an infinity in a model gives NaN, rather than numbers that look sound."""
    base, (first, second) = inputs({}, count=2)
    for damage in (NAN, INF):
        damaged = second.tensor.clone()
        damaged[5] = damage
        assert merge("perpendicular", [first, Model(damaged)], base).isnan().all()


@pytest.mark.parametrize(("gram", "expected"), [([4.0, 2.0, 9.0], 0.5), ([0.0, 0.0, 9.0], 0.0), ([1.0, INF, 1.0], NAN)])
def test_a_projection_needs_a_direction(gram: list[float], expected: float) -> None:
    """The share of X in Y is X.Y / X.X; 0 for a zero X, NaN for damaged products."""
    assert share(gram) == pytest.approx(expected, nan_ok=True)


def test_inputs_are_left_as_they_were() -> None:
    """No kernel writes to its inputs, for factors of one either."""
    x, y = model(1), model(2)
    copies = x.clone(), y.clone()
    counts = {"unique": [3, 4], "shared": [5, 5]}
    cases: list[tuple[str, list[Any], dict[str, object]]] = [
        ("ram", [x, y], {"epsilon": 0.1}),
        ("ram_plus", [x, y, counts], {"epsilon": 0.1, "r": 1.0, "alpha": 1.0}),
        ("overlap_counts", [x, y], {"epsilon": 0.1}),
        ("largest_magnitude", [x, y], {"weights": [1.0, 1.0]}),
        ("unify", [x, y], {"weights": [1.0, 1.0]}),
        ("agreeing", [x, y], {}),
        ("tall_mask", [x, y], {"weight": 1.0, "tall_lambda": 1.0}),
        ("tall_vote", [x, y], {"least": 1}),
        ("nearswap", [x, y], {"t": 0.1}),
        ("perpendicular", [x, y, {"gram": [2.0, 0.5, 3.0]}], {"alpha": 1.0}),
    ]
    for op, operands, parameters in cases:
        apply(OPS[op], operands, parameters)
    assert torch.equal(x, copies[0])
    assert torch.equal(y, copies[1])
