"""Elementwise kernels round each operation once, keep the bits they should, and leave their inputs alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_evaluation import apply
from torch import Tensor

from mergeflow.methods.kernels.arc import coefficients
from mergeflow.methods.kernels.protocols import pointwise_kernel
from mergeflow.methods.kernels.trimming import rescaling
from mergeflow.methods.ops import OPS

SIZES = st.sampled_from([0, 1, 63, 64, 1000])


def tensor(seed: int, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(size)).to(dtype)


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=5), SIZES, st.sampled_from([torch.float32, torch.float64]))
def test_a_weighted_sum_rounds_every_product_and_sum(weights: list[float], size: int, dtype: torch.dtype) -> None:
    """weighted_sum is ((c1 x1 + c2 x2) + c3 x3) ..., each operation rounded by itself, bit for bit."""
    tensors = [tensor(seed, size, dtype) for seed in range(len(weights))]
    result = apply(OPS["weighted_sum"], tensors, {"coefficients": weights})

    factors = [np.array(weight).astype(tensors[0].numpy().dtype) for weight in weights]
    expected = factors[0] * tensors[0].numpy()
    for factor, other in zip(factors[1:], tensors[1:], strict=True):
        expected = expected + factor * other.numpy()
    np.testing.assert_array_equal(result.numpy(), expected)


def test_a_coefficient_is_rounded_once() -> None:
    """A float64 factor is rounded to float32 before it multiplies, on every device alike."""
    value, factor = torch.tensor([3.0]), 1.0 / 3.0 + 1e-9
    assert apply(OPS["scale"], [value], {"factor": factor}).item() == np.float32(factor) * np.float32(3.0)


def test_differences_and_sums() -> None:
    """task_vector subtracts, add adds."""
    x, y = tensor(1, 63), tensor(2, 63)
    np.testing.assert_array_equal(apply(OPS["task_vector"], [x, y], {}).numpy(), x.numpy() - y.numpy())
    np.testing.assert_array_equal(apply(OPS["add"], [x, y], {}).numpy(), x.numpy() + y.numpy())


@pytest.mark.parametrize("target", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_cast_rounds_to_nearest(target: torch.dtype) -> None:
    """cast writes to the output's own dtype, rounding to nearest, ties to even."""
    block = torch.tensor([1.0, 1.0 + 2**-9, 1.0 + 3 * 2**-9, -0.0, torch.inf, 1e30])
    out = torch.empty(block.numel(), dtype=target)
    pointwise_kernel(OPS["cast"])([block], [], {"dtype": "ignored"}, out, torch.empty, 0)
    assert out.tolist() == block.to(target).tolist()
    if target == torch.bfloat16:
        assert out.tolist()[:3] == [1.0, 1.0, 1.0 + 2**-7]


@pytest.mark.parametrize(("before", "after", "expected"), [(6.0, 3.0, 2.0), (1e-8, 1e-9, 1.0), (1.0, 0.0, 1.0)])
def test_rescaling_restores_the_sum(before: float, after: float, expected: float) -> None:
    """rescale multiplies by b / a, and leaves alone what is negligible."""
    assert rescaling(before, after) == expected
    result = apply(OPS["rescale"], [torch.tensor([1.5]), {"sum": before}, {"sum": after}], {})
    assert result.item() == 1.5 * expected


def test_damaged_sums_are_not_passed_on_as_sound() -> None:
    """A NaN in the sums makes the rescaled tensor NaN."""
    nan = float("nan")
    assert apply(OPS["rescale"], [torch.tensor([1.5]), {"sum": nan}, {"sum": nan}], {}).isnan().all()


@pytest.mark.parametrize(
    ("gram", "t", "expected"),
    [
        ([1.0, 0.0, 1.0], 0.5, (0.5**0.5, 0.5**0.5)),
        ([4.0, 4.0, 4.0], 0.25, (0.75, 0.25)),
        ([4.0, -4.0, 4.0], 0.25, (0.75, 0.25)),
        ([0.0, 0.0, 9.0], 0.5, (0.5**0.5, 0.5**0.5)),
        ([1.0, 0.9996, 1.0], 0.3, (0.7, 0.3)),
        ([1.0, 1.0 + 1e-15, 1.0], 0.3, (0.7, 0.3)),
        ([1.0, 0.5, 1.0], 0.0, (1.0, 0.0)),
        ([1.0, 0.5, 1.0], 1.0, (0.0, 1.0)),
    ],
)
def test_slerp_coefficients(gram: list[float], t: float, expected: tuple[float, float]) -> None:
    """Orthogonal, parallel, opposite, zero and nearly parallel vectors; t = 0 and t = 1 are the ends exactly."""
    assert coefficients(gram, t) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_inputs_are_left_as_they_were() -> None:
    """No kernel writes to its inputs, for factors of one either."""
    x, y = tensor(1, 63), tensor(2, 63)
    copies = x.clone(), y.clone()
    for name, inputs, parameters in (
        ("weighted_sum", [x, y], {"coefficients": [1.0, 1.0]}),
        ("scale", [x], {"factor": 1.0}),
        ("task_vector", [x, y], {}),
        ("add", [x, y], {}),
        ("trim", [x, {"threshold": 0.5, "cut": 10}], {}),
        ("rescale", [x, {"sum": 1.0}, {"sum": 1.0}], {}),
        ("slerp", [x, y, {"gram": [1.0, 0.0, 1.0]}], {"t": 1.0}),
    ):
        apply(OPS[name], inputs, parameters)
    assert torch.equal(x, copies[0])
    assert torch.equal(y, copies[1])
