"""Finding NaN and infinities: the first one, in every format, and never where there is none."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergeflow.execute.finite import first_non_finite

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


@given(
    dtype=st.sampled_from(FLOATS),
    size=st.integers(1, 300),
    bad=st.lists(
        st.tuples(st.integers(0, 299), st.sampled_from([float("nan"), float("inf"), -float("inf")])), max_size=4
    ),
)
def test_the_first_is_found(dtype: torch.dtype, size: int, bad: list[tuple[int, float]]) -> None:
    """The index is that of the first NaN or infinity; None when the block has none."""
    block = torch.linspace(-2, 2, size)
    for index, value in bad:
        if index < size:
            block[index] = value
    block = block.to(dtype)
    expected = [index for index in range(size) if not torch.isfinite(block[index].float())]
    assert first_non_finite(block) == (expected[0] if expected else None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_large_numbers_are_finite(dtype: torch.dtype) -> None:
    """A sum that overflows is no infinity among the numbers."""
    assert first_non_finite(torch.full((1000,), torch.finfo(dtype).max, dtype=dtype)) is None


def test_infinities_that_cancel_are_found() -> None:
    """Plus and minus infinity sum to NaN, which is as good a sign."""
    assert first_non_finite(torch.tensor([1.0, float("inf"), -float("inf")])) == 1


@pytest.mark.parametrize(
    "block", [torch.arange(5), torch.tensor([True, False]), torch.empty(0), torch.empty(0, dtype=torch.float8_e5m2)]
)
def test_what_has_none(block: torch.Tensor) -> None:
    """Integers, booleans and nothing at all are finite."""
    assert first_non_finite(block) is None
