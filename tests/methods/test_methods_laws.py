"""What must hold of the methods whatever the tensors are: identities, symmetries, and no trace of the block size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from method_evaluation import BLOCKS, Leaf, Model, lower, merge
from torch import Tensor

SIZE = 2 * 65536 + 63


def model(seed: int, like: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Weights; near `like` when there is one, and then, as with real bf16 models, with many equal differences."""
    generator = np.random.default_rng(seed)
    if like is None:
        return torch.from_numpy(generator.standard_normal(SIZE)).bfloat16().to(dtype)
    change = torch.from_numpy(generator.standard_normal(SIZE) * 0.02)
    return (like + change).bfloat16().to(dtype)


def same(left: Tensor, right: Tensor) -> bool:
    """Whether both are the same bytes."""
    return left.dtype == right.dtype and left.numpy().tobytes() == right.numpy().tobytes()


CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("linear", {"weight": 0.3}, {}),
    ("linear", {"weight": 0.3}, {"normalize": False}),
    ("task_arithmetic", {"weight": 0.7}, {"lambda": 0.9}),
    ("ties", {"weight": 0.6, "density": 0.5}, {}),
    ("ties", {"weight": 0.6, "density": 0.1}, {"rescale": True, "normalize": False, "lambda": 0.4}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "own", "shared"), CASES)
def test_blocks_leave_no_trace(name: str, own: dict[str, Any], shared: dict[str, Any], dtype: torch.dtype) -> None:
    """A merge in blocks is the merge of whole tensors, bit for bit, for every block size."""
    base = model(0, dtype=dtype)
    listed = [Model(model(seed, base, dtype), own) for seed in (1, 2, 3)]
    given_base = None if name == "linear" else base
    results = [merge(name, listed, given_base, block, **shared) for block in BLOCKS]
    assert all(same(result, results[0]) for result in results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_leave_no_trace_in_slerp(dtype: torch.dtype) -> None:
    """slerp in blocks is slerp of whole tensors, bit for bit."""
    start, end = model(1, dtype=dtype), model(2, dtype=dtype)
    results = [merge("slerp", [Model(end)], start, block, t=0.35) for block in BLOCKS]
    assert all(same(result, results[0]) for result in results)


def test_threads_leave_no_trace() -> None:
    """The number of torch's threads changes no bit of TIES and SLERP, statistics included."""
    base = model(0)
    listed = [Model(model(seed, base), {"weight": 0.6, "density": 0.5}) for seed in (1, 2, 3)]
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        try:
            merged = merge("ties", listed, base, rescale=True)
            results.append((merged, merge("slerp", [Model(merged)], base, t=0.3)))
        finally:
            torch.set_num_threads(before)
    assert all(same(merged, results[0][0]) and same(arc, results[0][1]) for merged, arc in results)


def test_merging_a_model_with_itself_changes_little() -> None:
    """linear and slerp of equal models are that model, up to the rounding of their coefficients."""
    weights = model(1)
    twice = merge("linear", [Model(weights, {"weight": 0.3}), Model(weights.clone(), {"weight": 0.5})])
    torch.testing.assert_close(twice, weights, rtol=3e-7, atol=0)
    torch.testing.assert_close(merge("slerp", [Model(weights.clone())], weights, t=0.4), weights, rtol=3e-7, atol=0)


def test_fine_tunes_equal_to_the_base_leave_it_as_it_is() -> None:
    """Task arithmetic and TIES of unchanged models give the base, bit for bit."""
    base = model(0)
    own = {"weight": 0.5, "density": 0.5}
    listed = [Model(base.clone(), own), Model(base.clone(), own)]
    assert same(merge("task_arithmetic", listed, base), base)
    assert same(merge("ties", listed, base, rescale=True), base)


def test_two_models_commute() -> None:
    """The order of two models changes no bit of linear, task_arithmetic and ties."""
    base = model(0)
    pair = [
        Model(model(1, base), {"weight": 0.3, "density": 0.4}),
        Model(model(2, base), {"weight": 0.5, "density": 0.7}),
    ]
    plain = [Model(entry.tensor, {"weight": entry.parameters["weight"]}) for entry in pair]
    assert same(merge("linear", plain), merge("linear", plain[::-1]))
    assert same(merge("task_arithmetic", pair, base), merge("task_arithmetic", pair[::-1], base))
    assert same(merge("ties", pair, base), merge("ties", pair[::-1], base))


def test_three_models_commute_up_to_rounding() -> None:
    """The order of three models changes linear by rounding only."""
    listed = [Model(model(seed), {"weight": 0.1 * seed}) for seed in (1, 2, 3)]
    torch.testing.assert_close(merge("linear", listed), merge("linear", listed[::-1]), rtol=1e-5, atol=1e-6)


def test_slerp_is_the_same_from_both_ends() -> None:
    """slerp from A to Z at t is slerp from Z to A at 1 - t, up to rounding."""
    start, end = model(1), model(2)
    there = merge("slerp", [Model(end)], start, t=0.25)
    back = merge("slerp", [Model(start)], end, t=0.75)
    torch.testing.assert_close(there, back, rtol=1e-6, atol=1e-6)


def test_a_delta_is_used_as_it_is() -> None:
    """Methods that add to a base give the same bytes for weights and for their task vectors."""
    base = model(0)
    tuned = [model(seed, base) for seed in (1, 2)]
    own = {"weight": 0.5, "density": 0.5}
    for name in ("task_arithmetic", "ties"):
        from_weights = merge(name, [Model(tensor, own) for tensor in tuned], base)
        from_deltas = merge(name, [Model(tensor - base, own, "delta") for tensor in tuned], base)
        assert same(from_weights, from_deltas)


@pytest.mark.parametrize(
    ("name", "own", "shared", "expected"),
    [
        ("passthrough", {}, {}, "model"),
        ("passthrough", {"scale": 1.0}, {}, "model"),
        ("linear", {"weight": 0.7}, {}, "model"),
        ("linear", {"weight": 1.0}, {"normalize": False}, "model"),
        ("slerp", {}, {"t": 0.0}, "base"),
        ("slerp", {}, {"t": 1.0}, "model"),
        ("task_arithmetic", {"weight": 0.0}, {}, "base"),
        ("task_arithmetic", {"weight": 1.0}, {"lambda": 0.0}, "base"),
        ("ties", {"weight": 0.0}, {}, "base"),
        ("ties", {"weight": 1.0, "density": 0.0}, {}, "base"),
        ("ties", {"weight": 1.0}, {"lambda": 0.0}, "base"),
    ],
)
def test_a_result_that_is_an_input_is_that_input(
    name: str, own: dict[str, Any], shared: dict[str, Any], expected: str
) -> None:
    """Where a merge comes down to one of its inputs, no operation is emitted, so its bytes are copied."""
    base, tuned = model(0), model(1)
    result = lower(name, [Model(tuned, own)], None if name in ("passthrough", "linear") else base, **shared)
    assert isinstance(result, Leaf)
    assert result.tensor is (base if expected == "base" else tuned)


def test_a_nan_is_never_hidden_nor_spread() -> None:
    """A NaN in one model's weights is a NaN at its place in a TIES merge, and nowhere else."""
    base = model(0)
    damaged = model(1, base).clone()
    damaged[1000] = torch.nan
    own = {"weight": 0.5, "density": 0.01}
    result = merge("ties", [Model(damaged, own), Model(model(2, base), own)], base)
    assert result.isnan().nonzero().tolist() == [[1000]]


def test_a_damaged_tensor_has_no_direction() -> None:
    """SLERP with a NaN or an infinity in an input gives NaN, rather than numbers that look sound."""
    for damage in (torch.nan, torch.inf):
        damaged = model(1).clone()
        damaged[5] = damage
        assert merge("slerp", [Model(damaged)], model(2), t=0.5).isnan().all()
