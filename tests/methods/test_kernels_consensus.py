"""TIES' consensus equals the specification's order of operations, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import reference_methods as reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_evaluation import apply
from torch import Tensor

from mergeflow.methods.ops import OPS

WEIGHTS = st.sampled_from([0.1, 0.25, 0.6, 1.0, 1.7, -0.3, -1.0, 0.0])
SIZES = st.sampled_from([0, 1, 2, 63, 64, 1000])


def consensus(deltas: list[Tensor], weights: list[float], normalize: bool = True, scale: float = 1.0) -> Tensor:
    result = apply(OPS["consensus"], deltas, {"weights": weights, "normalize": normalize, "lambda": scale})
    assert isinstance(result, Tensor)
    return result


@given(
    seed=st.integers(0, 2**32 - 1),
    size=SIZES,
    weights=st.lists(WEIGHTS, min_size=1, max_size=5),
    normalize=st.booleans(),
    scale=st.sampled_from([1.0, 0.37, -2.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    pruned=st.floats(0.0, 1.0),
)
def test_consensus_follows_the_specification_bit_for_bit(
    seed: int, size: int, weights: list[float], normalize: bool, scale: float, dtype: torch.dtype, pruned: float
) -> None:
    """For any deltas, pruned to any share, and weights of either sign, not one bit differs (but the sign of a zero)."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((len(weights), size)) * (generator.random((len(weights), size)) >= pruned)
    deltas = [torch.from_numpy(row).to(dtype) for row in values]

    result = consensus(deltas, weights, normalize, scale)
    expected = reference.consensus([delta.numpy() for delta in deltas], weights, normalize, scale)
    np.testing.assert_array_equal(result.numpy(), expected, strict=True)


def test_votes_that_cancel_elect_the_positive() -> None:
    """A vote that sums to zero counts as positive."""
    assert consensus([torch.tensor([2.0]), torch.tensor([-2.0])], [1.0, 1.0], normalize=False).item() == 2.0
    assert consensus([torch.tensor([-2.0]), torch.tensor([2.0])], [1.0, 1.0], normalize=False).item() == 2.0


def test_pruned_entries_add_no_weight() -> None:
    """Only the weights of models that agree divide the sum: entries that were trimmed do not dilute it."""
    left, right = torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([3.0, 0.0, 0.0, -4.0])
    result = consensus([left, right], [0.5, 0.25]).tolist()
    assert result == pytest.approx([(0.5 + 0.75) / 0.75, 1.0, 0.0, -4.0], rel=1e-7)


def test_weights_that_cancel_where_models_agree_divide_nothing() -> None:
    """Where the agreeing weights sum to zero, the sum is divided by one."""
    assert consensus([torch.tensor([2.0]), torch.tensor([-6.0])], [1.0, -1.0]).item() == 8.0


@pytest.mark.parametrize("size", [1, 63, 1000])
def test_a_nan_stays_at_its_place(size: int) -> None:
    """A NaN of any model is a NaN in the result, and no other element is touched."""
    deltas = [torch.ones(size), torch.full((size,), -0.5), torch.ones(size)]
    deltas[1][size // 2] = torch.nan
    assert consensus(deltas, [0.5, 0.3, 0.2]).isnan().nonzero().tolist() == [[size // 2]]


def test_an_elected_infinity_stays() -> None:
    """An infinity outvotes everything and is the result; finite votes against it leave no NaN."""
    result = consensus([torch.tensor([torch.inf, -torch.inf]), torch.tensor([-1.0, 1.0])], [0.5, 0.5])
    assert result.tolist() == [torch.inf, -torch.inf]


def test_inputs_are_left_as_they_were() -> None:
    """The kernel writes to its scratch only, for weight one too."""
    deltas = [torch.tensor([1.0, -2.0, 0.0]), torch.tensor([-3.0, 1.0, 0.5])]
    copies = [delta.clone() for delta in deltas]
    consensus(deltas, [1.0, 0.5])
    assert all(torch.equal(delta, copy) for delta, copy in zip(deltas, copies, strict=True))
