"""Arcee Fusion: importance from divergences of rows, exact quartiles, and a selection."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from method_evaluation import BLOCKS, Model, apply, merge
from torch import Tensor

from mergeflow.methods.kernels.exponential import exp_, log_
from mergeflow.methods.ops import OPS

BASE = torch.tensor([[0.5, -1, 2, 0.1], [0.25, 0, -0.75, 0.3], [1, 0.5, 0, -0.5]])
OTHER = torch.tensor([[0.52, -0.97, 2.01, 0.12], [0.35, -0.6, 1.75, 0.28], [1.01, 0.49, 0.02, -0.51]])


def buffers(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


def reference(other: Tensor, base: Tensor) -> Tensor:
    """The formula in float64, on whole tensors, with torch's own functions."""
    x, b = other.double(), base.double()
    p, q = torch.softmax(x, -1) + 1e-8, torch.softmax(b, -1) + 1e-8
    weighed = (x - b).abs() * (p * (p / q).log()).sum(-1, keepdim=True)
    ordered = weighed.flatten().sort().values
    lower, median, upper = (ordered[quarter * (len(ordered) - 1) // 4] for quarter in (1, 2, 3))
    return torch.where(weighed >= median + 1.5 * (upper - lower), x, b)


def test_the_published_numbers() -> None:
    """The 3 x 4 example of the specification, in both directions: changed outliers are taken over as they are."""
    expected = BASE.clone()
    expected[1, :3] = OTHER[1, :3]
    assert torch.equal(merge("arcee_fusion", [Model(OTHER)], BASE), expected)
    back = OTHER.clone()
    back[1, :3] = BASE[1, :3]
    assert torch.equal(merge("arcee_fusion", [Model(BASE)], OTHER), back)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(5, 7), (3, 4, 9), (40, 64), (63,)]), st.sampled_from([0.02, 1.0]))
def test_it_is_the_formula(seed: int, shape: tuple[int, ...], spread: float) -> None:
    """What is selected is what the formula selects in float64."""
    generator = np.random.default_rng(seed)
    base = torch.from_numpy(generator.standard_normal(shape) * spread).bfloat16().float()
    other = (base + torch.from_numpy(generator.standard_normal(shape) * spread / 10).float()).bfloat16().float()
    assert torch.equal(merge("arcee_fusion", [Model(other)], base).double(), reference(other, base))


@pytest.mark.parametrize("shape", [(3, 70_000), (400, 500), (200_001,)])
def test_the_cut_into_blocks_changes_no_bit(shape: tuple[int, ...]) -> None:
    """Rows longer than a block, several to a block, and a single one."""
    generator = np.random.default_rng(1)
    base, other = (torch.from_numpy(generator.standard_normal(shape)).float() for _ in range(2))
    whole, *cut = [apply(OPS["fusion_importance"], [other, base], {}, block) for block in (None, *BLOCKS)]
    assert all(torch.equal(result, whole) for result in cut)


def test_damage_is_seen() -> None:
    """A NaN of either model is a NaN of the result."""
    for place in (0, 1):
        tensors = [OTHER.clone(), BASE.clone()]
        tensors[place][2, 3] = torch.nan
        assert bool(merge("arcee_fusion", [Model(tensors[0])], tensors[1])[2, 3].isnan())


def test_the_exponential_is_right() -> None:
    """Within a few units in the last place over the whole range; a NaN stays, and far below it is all but zero."""
    x = torch.cat([torch.linspace(-690.0, 690.0, 100_001, dtype=torch.float64), torch.linspace(-1, 1, 9999).double()])
    torch.testing.assert_close(exp_(x.clone(), buffers(x)), x.exp(), rtol=1e-15, atol=0.0)
    odd = torch.tensor([torch.nan, -torch.inf, 0.0], dtype=torch.float64)
    result = exp_(odd, buffers(odd))
    assert bool(result[0].isnan())
    assert float(result[1]) < 1e-300
    assert float(result[2]) == 1.0


def test_the_logarithm_is_right() -> None:
    """Within a few units in the last place, near 1 too; a NaN stays."""
    x = torch.cat(
        [torch.logspace(-300, 300, 100_001, dtype=torch.float64), 1 + torch.linspace(-1e-3, 1e-3, 999).double()]
    )
    torch.testing.assert_close(log_(x.clone(), buffers(x)), x.log(), rtol=2e-15, atol=0.0)
    odd = torch.tensor([torch.nan, 1.0], dtype=torch.float64)
    result = log_(odd, buffers(odd))
    assert bool(result[0].isnan())
    assert float(result[1]) == 0.0
