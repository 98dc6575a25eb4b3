"""The k-th largest magnitude is exact, keeps exactly k elements, and always ends."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import reference_methods as reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_evaluation import BLOCKS, apply, gather_statistic, scratch_like
from numpy.typing import NDArray
from torch import Tensor

from mergeflow.methods.kernels.order_statistics import MOST_HELD, KthMagnitude, compare_on_device
from mergeflow.methods.kernels.protocols import SUM_BLOCK, Record
from mergeflow.methods.kernels.tally import compare
from mergeflow.methods.ops import OPS

LARGE = 5 * SUM_BLOCK + 63
Kind = Callable[[np.random.Generator, int], NDArray[np.float64]]


def normal(generator: np.random.Generator, size: int) -> NDArray[np.float64]:
    return generator.standard_normal(size)


def bfloat16_delta(generator: np.random.Generator, size: int) -> NDArray[np.float64]:
    """The difference of two models stored as bfloat16: few distinct values, most of them zero."""
    base = torch.from_numpy(generator.standard_normal(size)).bfloat16().double()
    tuned = (base + torch.from_numpy(generator.standard_normal(size)) * 0.003).bfloat16().double()
    return (tuned - base).numpy()


def few_values(generator: np.random.Generator, size: int) -> NDArray[np.float64]:
    return generator.integers(-2, 3, size) / 2.0


def constant(generator: np.random.Generator, size: int) -> NDArray[np.float64]:
    return np.full(size, -0.25)


def mostly_zero(generator: np.random.Generator, size: int) -> NDArray[np.float64]:
    return np.where(generator.random(size) < 0.95, 0.0, generator.standard_normal(size))


def rising(generator: np.random.Generator, size: int) -> NDArray[np.float64]:
    """Sorted: what has been seen of it never tells of what comes."""
    return np.sort(np.abs(generator.standard_normal(size)))


def rows_of_their_own_scale(generator: np.random.Generator, size: int) -> NDArray[np.float64]:
    scales = np.exp(2.0 * generator.standard_normal(size // 1000 + 1))
    return generator.standard_normal(size) * np.repeat(scales, 1000)[:size]


def with_nans(generator: np.random.Generator, size: int) -> NDArray[np.float64]:
    return np.where(generator.random(size) < 0.3, np.nan, generator.standard_normal(size))


def with_infinities(generator: np.random.Generator, size: int) -> NDArray[np.float64]:
    return np.where(generator.random(size) < 0.3, -np.inf, generator.standard_normal(size))


KINDS = [
    normal,
    bfloat16_delta,
    few_values,
    constant,
    mostly_zero,
    rising,
    rows_of_their_own_scale,
    with_nans,
    with_infinities,
]


def kept(tensor: Tensor, record: Record) -> NDArray[np.bool_]:
    """The mask of what `trim` keeps: what it leaves of a tensor's places (a zero that is kept cannot be told)."""
    magnitudes = np.abs(tensor.numpy())
    places = np.arange(tensor.numel())
    equal = (magnitudes == record["threshold"]) & (places <= record["cut"])
    return (magnitudes > record["threshold"]) | equal | np.isnan(magnitudes)


def expected_mask(tensor: Tensor, k: int) -> NDArray[np.bool_]:
    magnitudes = np.abs(tensor.double().numpy())
    return reference.largest(magnitudes, k) | np.isnan(magnitudes)


def find(tensor: Tensor, k: int, block: int | None = None, most_held: int = MOST_HELD) -> Record:
    return gather_statistic(KthMagnitude(tensor.numel(), {"k": k}, most_held), [tensor], block)


@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(KINDS),
    size=st.sampled_from([1, 2, 63, 1000, SUM_BLOCK, SUM_BLOCK + 1]),
    share=st.floats(0.0, 1.0),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    block=st.sampled_from([SUM_BLOCK, None]),
)
def test_exactly_k_survive(
    seed: int, kind: Kind, size: int, share: float, dtype: torch.dtype, block: int | None
) -> None:
    """The record keeps the k largest, ties to the lowest index, of tensors of any size and any values."""
    tensor = torch.from_numpy(kind(np.random.default_rng(seed), size)).to(dtype)
    k = max(1, int(share * size))
    mask = kept(tensor, find(tensor, k, block))
    np.testing.assert_array_equal(mask, expected_mask(tensor, k))
    assert mask.sum() == max(k, int(tensor.isnan().sum()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [1e-5, 0.5, 0.999])
def test_a_large_tensor_is_bracketed_from_a_sample(kind: Kind, share: float) -> None:
    """A tensor of several blocks has the same record for every block size, and it is the exact one."""
    tensor = torch.from_numpy(kind(np.random.default_rng(0), LARGE)).float()
    k = max(1, int(share * LARGE))
    records = [find(tensor, k, block) for block in BLOCKS]
    assert all(record == records[0] for record in records)
    np.testing.assert_array_equal(kept(tensor, records[0]), expected_mask(tensor, k))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("most_held", [0, 7, 5000])
def test_little_memory_changes_nothing(kind: Kind, most_held: int) -> None:
    """However little a pass may hold, the record is the same; it may take more passes."""
    size = SUM_BLOCK + 5000
    tensor = torch.from_numpy(kind(np.random.default_rng(1), size)).float()
    assert find(tensor, size // 3, SUM_BLOCK, most_held) == find(tensor, size // 3)


def test_a_bracket_that_holds_too_much_is_narrowed() -> None:
    """A large tensor with little memory: the bracket from the sample is narrowed on the way, the record is the same."""
    tensor = torch.from_numpy(normal(np.random.default_rng(6), LARGE)).float()
    assert find(tensor, LARGE // 3, SUM_BLOCK, most_held=2000) == find(tensor, LARGE // 3)


def test_a_misleading_sample_changes_nothing() -> None:
    """Samples from elsewhere, constant, or all NaN cost passes, never exactness."""
    tensor = torch.from_numpy(normal(np.random.default_rng(2), LARGE)).float()
    k = LARGE // 2
    expected = find(tensor, k)
    for sample in (torch.full((4096,), 1e9), torch.zeros(4096), torch.full((4096,), torch.nan), torch.ones(1)):
        statistic = KthMagnitude(LARGE, {"k": k})
        statistic.sample([sample])
        assert feed(statistic, tensor) == expected


def feed(statistic: KthMagnitude, tensor: Tensor, whole: bool = False) -> Record:
    """Passes until the record is there, over what is wanted, or over everything every time."""
    for _ in range(100):
        for start in range(0, tensor.numel(), SUM_BLOCK):
            block = tensor[start : start + SUM_BLOCK]
            if whole or start in statistic.wanted:
                statistic.update(start, [block], scratch_like(block))
        record = statistic.finish()
        if record is not None:
            return record
    raise AssertionError("no record")


def test_a_pass_may_bring_more_than_is_wanted() -> None:
    """An executor that always reads everything gets the same record."""
    tensor = torch.from_numpy(bfloat16_delta(np.random.default_rng(3), LARGE)).float()
    for k in (LARGE // 50, LARGE // 2):
        assert feed(KthMagnitude(LARGE, {"k": k}), tensor, whole=True) == feed(KthMagnitude(LARGE, {"k": k}), tensor)


def test_ties_at_the_threshold_cost_one_piece_more() -> None:
    """When only some of the elements equal to the threshold are kept, just the piece of the cut is read again."""
    tensor = torch.zeros(LARGE)
    tensor[::2] = 1.0
    statistic = KthMagnitude(LARGE, {"k": LARGE // 4})
    assert statistic.wanted == range(LARGE)
    for start in range(0, LARGE, SUM_BLOCK):
        block = tensor[start : start + SUM_BLOCK]
        statistic.update(start, [block], scratch_like(block))
    assert statistic.finish() is None
    assert len(statistic.wanted) == SUM_BLOCK
    assert feed(statistic, tensor) == {"threshold": 1.0, "cut": 2 * (LARGE // 4 - 1)}


def test_ties_are_found_in_blocks_that_start_anywhere() -> None:
    """A piece of the tensor that comes in several blocks holds the cut where it holds it in one."""
    tensor = torch.from_numpy(np.random.default_rng(4).integers(0, 3, LARGE)).float()
    for k in (LARGE // 7, LARGE // 2, LARGE - 5):
        expected = find(tensor, k)
        assert [find(tensor, k, block) for block in (10_007, 65_537, 200_003)] == [expected] * 3


def test_more_nans_than_places_keep_the_nans_alone() -> None:
    """With k NaNs or more nothing else is kept: the threshold is infinite, for small and large tensors."""
    for size in (10, LARGE):
        tensor = torch.full((size,), torch.nan)
        tensor[::2] = torch.inf
        assert find(tensor, size // 4, SUM_BLOCK) == {"threshold": torch.inf, "cut": -1}


def test_everything_is_kept_without_reading() -> None:
    """k of the tensor's size or more needs no pass at all; so does an empty tensor."""
    for size in (0, 1, 10):
        statistic = KthMagnitude(size, {"k": 10})
        assert statistic.finish() == {"threshold": 0.0, "cut": size - 1}
        assert not statistic.needs_sample


def test_k_must_be_positive() -> None:
    """A k below 1 is refused."""
    with pytest.raises(ValueError, match="k must be at least 1"):
        KthMagnitude(10, {"k": 0})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bracket", [(0.0, np.inf), (0.5, 0.75), (0.5, 0.5), (0.0, 0.0)])
def test_both_comparisons_count_the_same(kind: Kind, bracket: tuple[float, float]) -> None:
    """The comparison for other devices gives what numpy's gives."""
    magnitudes = torch.from_numpy(np.abs(kind(np.random.default_rng(4), 1000))).float()
    on_host = compare(magnitudes.numpy(), *bracket)
    on_device = compare_on_device(magnitudes, *bracket)
    assert (on_host.above, on_host.at_high, on_host.at_low) == (on_device.above, on_device.at_high, on_device.at_low)
    np.testing.assert_array_equal(on_host.inside, on_device.inside)


@pytest.mark.parametrize("kind", KINDS)
def test_trimming_keeps_what_the_record_says(kind: Kind) -> None:
    """trim leaves the k largest as they are and zeroes the rest, wherever the cut lies in the blocks."""
    tensor = torch.from_numpy(kind(np.random.default_rng(5), 3 * SUM_BLOCK)).float()
    k = tensor.numel() // 3
    record = find(tensor, k)
    expected = np.where(expected_mask(tensor, k), tensor.numpy(), 0.0)
    for block in (1000, SUM_BLOCK, None):
        np.testing.assert_array_equal(apply(OPS["trim"], [tensor, record], {}, block), expected)


def test_the_smallest_magnitude_can_be_the_threshold() -> None:
    """Denormal numbers and zeros are compared like any others."""
    tensor = torch.tensor([0.0, 1e-45, -3e-45, 1.0, 0.0])
    for k, expected in ((1, [0, 0, 0, 1]), (2, [0, 0, 1, 1]), (3, [0, 1, 1, 1]), (4, [0, 1, 1, 1])):
        trimmed = apply(OPS["trim"], [tensor, find(tensor, k)], {})
        assert (trimmed != 0.0).int().tolist()[:4] == expected
