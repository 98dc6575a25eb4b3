"""Sums are float64, near the exact value, and the same however the tensor is cut."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_evaluation import BLOCKS, apply
from torch import Tensor

from mergeflow.methods.ops import OPS

DTYPES = [torch.float32, torch.float64]
LARGE = 3 * 65536 + 63


def tensor(seed: int, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(size)).to(dtype)


def dot(left: Tensor, right: Tensor) -> float:
    """The exact dot product, rounded once."""
    return math.fsum((left.double() * right.double()).tolist())


@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 2, 63, 64, 65, 1000]), st.sampled_from(DTYPES))
def test_sums_of_any_size_are_right(seed: int, size: int, dtype: torch.dtype) -> None:
    """The sum of magnitudes and every dot product is within 1e-13 of the exact one."""
    x, y, z = (tensor(seed + i, size, dtype) for i in range(3))
    total = apply(OPS["magnitude_sum"], [x], {})["sum"]
    assert total == pytest.approx(math.fsum(x.double().abs().tolist()), rel=1e-13)

    gram = apply(OPS["gram"], [x, y, z], {})["gram"]
    exact = [dot(x, x), dot(x, y), dot(x, z), dot(y, y), dot(y, z), dot(z, z)]
    assert gram == pytest.approx(exact, rel=1e-13, abs=1e-13 * (1 + size))


def test_the_sums_of_a_large_tensor_are_right() -> None:
    """Several elements to a lane, and an uneven end, are added as exactly."""
    x, y = tensor(1, LARGE), tensor(2, LARGE)
    assert apply(OPS["gram"], [x, y], {})["gram"] == pytest.approx([dot(x, x), dot(x, y), dot(y, y)], rel=1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_cut_into_blocks_changes_no_bit(dtype: torch.dtype) -> None:
    """Every block size gives the same float64 numbers."""
    x, y = tensor(1, LARGE, dtype), tensor(2, LARGE, dtype)
    grams = [apply(OPS["gram"], [x, y], {}, block) for block in BLOCKS]
    sums = [apply(OPS["magnitude_sum"], [x], {}, block) for block in BLOCKS]
    assert all(gram == grams[0] for gram in grams)
    assert all(total == sums[0] for total in sums)


def test_large_and_small_terms_do_not_hide_each_other() -> None:
    """A float32 sum of a million small terms beside a large one would lose them."""
    x = torch.full((2**20,), 1e-4)
    x[0] = 1e6
    exact = math.fsum(x.double().tolist())
    assert apply(OPS["magnitude_sum"], [x], {})["sum"] == pytest.approx(exact, rel=1e-14)


def test_damage_is_seen() -> None:
    """A NaN makes a sum NaN, an infinity infinite, opposite infinities NaN, wherever they are."""
    for size in (3, LARGE):
        x, y = torch.ones(size), torch.ones(size)
        x[size // 2] = torch.inf
        assert apply(OPS["magnitude_sum"], [x], {})["sum"] == math.inf
        assert apply(OPS["gram"], [x, y], {})["gram"][:2] == [math.inf, math.inf]
        y[size // 2] = torch.nan
        assert math.isnan(apply(OPS["gram"], [x, y], {})["gram"][1])
        y[size // 2], y[0], x[0] = 1.0, -1.0, torch.inf
        assert math.isnan(apply(OPS["gram"], [x, y], {})["gram"][1])


def test_inputs_are_left_as_they_were() -> None:
    """Magnitudes are taken of a copy."""
    x = torch.tensor([-1.0, 2.0])
    apply(OPS["magnitude_sum"], [x], {})
    assert x.tolist() == [-1.0, 2.0]
