"""Methods that elect, mask and carry over, held to their formulas on any shape, and to the published numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import reference_overlap as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from method_evaluation import Model, merge
from numpy.typing import NDArray
from torch import Tensor

SHAPES = st.sampled_from([(), (1,), (63,), (7, 9), (3, 1, 5), (0,), (4, 0)])
DTYPES = st.sampled_from([torch.float32, torch.float64])

# Multiples of 1/8 with factors of few bits: sums and products are exact, so what is larger, what ties and what is
# elected is the same in float32 and float64.
WEIGHTS = st.sampled_from([0.25, 0.5, 1.0, 1.5, -0.5, 0.0])
DENSITIES = st.sampled_from([0.0, 0.2, 0.5, 1.0])
STRICTNESS = st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0])
SCALES = st.sampled_from([1.0, 0.5, -1.0, 0.0])
FEW = settings(max_examples=30)

BASE = torch.tensor([[0.5, -1, 2], [0.25, 0, -0.75]])
A = torch.tensor([[0.9, -0.8, 1.5], [0.35, -0.6, -0.70]])
B = torch.tensor([[0.1, -1.3, 1.2], [0.30, 0.4, 0.25]])
D = torch.tensor([[0.8, -1.1, 2.6], [0.05, -0.2, -0.95]])


@st.composite
def tensors(draw: st.DrawFn, count: int) -> list[Tensor]:
    """`count` tensors of one shape and dtype, near each other, with few distinct values: many equal, many tied."""
    shape, dtype = draw(SHAPES), draw(DTYPES)
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return [torch.from_numpy(np.asarray(generator.integers(-8, 9, shape) / 8.0)).to(dtype) for _ in range(count)]


def several(data: st.DataObject, values: st.SearchStrategy[float], count: int) -> list[float]:
    return data.draw(st.lists(values, min_size=count, max_size=count))


def exact(tensors_: Sequence[Tensor]) -> list[NDArray[np.float64]]:
    return [tensor.double().numpy() for tensor in tensors_]


def check(result: Tensor, expected: NDArray[np.float64]) -> None:
    relative = 1e-12 if result.dtype == torch.float64 else 2e-6
    np.testing.assert_allclose(result.double().numpy(), expected, rtol=relative, atol=relative)


@FEW
@given(st.data(), st.integers(1, 4), st.sampled_from([0.0, 0.125, 0.5, 9.0]))
def test_ram_averages_over_those_that_changed(data: st.DataObject, count: int, epsilon: float) -> None:
    """ram keeps what one model alone changed by more than epsilon, and averages what several changed over those."""
    base, *models = data.draw(tensors(count + 1))
    result = merge("ram", [Model(x) for x in models], base, epsilon=epsilon)
    check(result, reference.ram(*exact([base]), exact(models), epsilon))


@FEW
@given(
    st.data(),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.125, 0.5, 1.5]),
    st.sampled_from([0.1, 1.0, -0.5, 0.0]),
    st.sampled_from([0.2, 5.0, 0.0]),
)
def test_ramplus_strengthens_what_is_unique(
    data: st.DataObject, count: int, epsilon: float, r: float, alpha: float
) -> None:
    """ramplus_tl multiplies what a model alone changed by its ratio of shared to unique changes, bounded."""
    base, *models = data.draw(tensors(count + 1))
    result = merge("ramplus_tl", [Model(x) for x in models], base, r=r, alpha=alpha, epsilon=epsilon)
    check(result, reference.ram_plus(*exact([base]), exact(models), r, alpha, epsilon))


@FEW
@given(st.data(), st.sampled_from([0.0, 0.125, 0.3, 5.0, -1.0]))
def test_nearswap_interpolates_by_distance(data: st.DataObject, t: float) -> None:
    """nearswap equals the published interpolation, whose weight is t over the distance."""
    base, other = data.draw(tensors(2))
    check(merge("nearswap", [Model(other)], base, t=t), reference.nearswap(*exact([base, other]), t))


@FEW
@given(st.data(), st.sampled_from([1.0, 0.3, -2.0, 0.0]))
def test_add_difference_adds_a_difference(data: st.DataObject, alpha: float) -> None:
    """add_difference is the base plus alpha times the first model minus the second."""
    base, tuned, origin = data.draw(tensors(3))
    a, b, c = exact([base, tuned, origin])
    check(merge("add_difference", [Model(tuned), Model(origin)], base, alpha=alpha), np.asarray(a + alpha * (b - c)))


@FEW
@given(st.data(), st.sampled_from([1.0, 0.3, -2.0, 0.0]))
def test_perpendicular_adds_what_is_orthogonal(data: st.DataObject, alpha: float) -> None:
    """perpendicular equals the formula, for parallel, opposite and zero task vectors too."""
    base, first, other = data.draw(tensors(3))
    make: Callable[[], Tensor] = data.draw(
        st.sampled_from([lambda: other, lambda: 2 * first - base, lambda: 2 * base - first, lambda: base])
    )
    second = make()
    first = data.draw(st.sampled_from([first, base.clone()]))
    result = merge("perpendicular", [Model(first), Model(second)], base, alpha=alpha)
    check(result, reference.perpendicular(*exact([base, first, second]), alpha))


@FEW
@given(st.data(), st.integers(1, 4), st.integers(0, 5), st.booleans(), SCALES)
def test_consensus_ta_masks_the_sum(data: st.DataObject, count: int, least: int, normalize: bool, scale: float) -> None:
    """consensus_ta keeps of the weighted sum what enough models' masks select."""
    base, *models = data.draw(tensors(count + 1))
    weights, strictness = several(data, WEIGHTS, count), several(data, STRICTNESS, count)
    listed = [
        Model(x, {"weight": weight, "tall_lambda": strict})
        for x, weight, strict in zip(models, weights, strictness, strict=True)
    ]
    result = merge("consensus_ta", listed, base, consensus_k=least, normalize=normalize, **{"lambda": scale})
    voters = [i for i, weight in enumerate(weights) if weight != 0.0]
    if not voters:
        check(result, *exact([base]))
        return
    taking_part = ([values[i] for i in voters] for values in (exact(models), weights, strictness))
    check(result, reference.consensus_ta(*exact([base]), *taking_part, least, normalize, scale))


@FEW
@given(st.data(), st.integers(1, 4), st.integers(0, 5), st.booleans(), SCALES)
def test_consensus_ties_masks_the_elected(
    data: st.DataObject, count: int, least: int, normalize: bool, scale: float
) -> None:
    """consensus_ties keeps of TIES' merged task vector what enough models' masks select."""
    base, *models = data.draw(tensors(count + 1))
    weights, strictness = several(data, WEIGHTS, count), several(data, STRICTNESS, count)
    densities = several(data, DENSITIES, count)
    listed = [
        Model(x, {"weight": weight, "tall_lambda": strict, "density": density})
        for x, weight, strict, density in zip(models, weights, strictness, densities, strict=True)
    ]
    result = merge("consensus_ties", listed, base, consensus_k=least, normalize=normalize, **{"lambda": scale})
    voters = [i for i in range(count) if weights[i] != 0.0 and densities[i] > 0.0]
    if not voters:
        check(result, *exact([base]))
        return
    taking_part = ([values[i] for i in voters] for values in (exact(models), weights, densities, strictness))
    check(result, reference.consensus_ties(*exact([base]), *taking_part, least, normalize, scale))


@FEW
@given(st.data(), st.integers(1, 5), SCALES)
def test_magmax_takes_the_largest(data: st.DataObject, count: int, scale: float) -> None:
    """magmax takes each element of the weighted task vector that is largest there, the first listed of equals."""
    base, *models = data.draw(tensors(count + 1))
    weights = several(data, WEIGHTS, count)
    listed = [Model(x, {"weight": weight}) for x, weight in zip(models, weights, strict=True)]
    result = merge("magmax", listed, base, **{"lambda": scale})
    check(result, reference.magmax(*exact([base]), exact(models), weights, scale))


@FEW
@given(st.data(), st.integers(1, 4), SCALES, st.booleans())
def test_emr_elects_and_masks(data: st.DataObject, count: int, scale: float, asks: bool) -> None:
    """emr elects the largest magnitude of the sum's sign; for one task it masks that to its signs and rescales it."""
    base, *models = data.draw(tensors(count + 1))
    weights = several(data, st.sampled_from([0.25, 0.5, 1.0, 1.5]), count)
    task = data.draw(st.integers(0, count - 1)) if asks else None
    listed = [
        Model(x, {"weight": weight, "task": i == task})
        for i, (x, weight) in enumerate(zip(models, weights, strict=True))
    ]
    result = merge("emr", listed, base, **{"lambda": scale})
    check(result, reference.emr(*exact([base]), exact(models), weights, task, scale))


@FEW
@given(st.data(), st.sampled_from([1.0, 0.3, -2.0, 0.0]))
def test_scale_multiplies(data: st.DataObject, factor: float) -> None:
    """scale is the delta times the factor."""
    (delta,) = data.draw(tensors(1))
    check(merge("scale", [Model(delta, type="delta")], factor=factor), np.asarray(factor * exact([delta])[0]))


PUBLISHED: list[tuple[str, list[Tensor], dict[str, Any], list[float]]] = [
    ("ram", [A, B, D], {"epsilon": 0.15}, [0.59999996, -1.05, 1.7666667, 0.049999997, -0.13333333, -0.34999999]),
    ("ramplus_tl", [A, B, D], {"epsilon": 0.15}, [0.59999996, -1.05, 1.7666667, 0.046000004, -0.13333333, -0.34999999]),
    (
        "ramplus_tl",
        [A.bfloat16().float(), B.bfloat16().float()],
        {"epsilon": 0.15},
        [0.49902344, -1.0488281, 1.3515625, 0.25, -0.10058594, 0.26999998],
    ),
    ("nearswap", [A], {"t": 0.1}, [0.60000002, -0.89999998, 1.9000001, 0.34999999, -0.10000001, -0.69999999]),
]


@pytest.mark.parametrize(("name", "models", "shared", "expected"), PUBLISHED)
def test_mergekits_numbers(name: str, models: list[Tensor], shared: dict[str, Any], expected: list[float]) -> None:
    """ram, ramplus_tl and nearswap give the published vectors of mergekit 0.1.5."""
    result = merge(name, [Model(tensor) for tensor in models], BASE, **shared)
    # The bfloat16 vector was computed in bfloat16, up to its last addition.
    relative = 2.0**-8 if models[0] is not A else 5e-7
    torch.testing.assert_close(result.reshape(-1), torch.tensor(expected), rtol=relative, atol=1.2e-7)


@pytest.mark.parametrize(
    ("name", "own", "shared", "expected"),
    [
        ("magmax", {}, {}, [-0.4, -0.3, -0.8, -0.2, -0.6, 1.0]),
        ("emr", {}, {}, [0.4, -0.3, -0.8, -0.2, -0.6, 1.0]),
        ("consensus_ta", {"weight": 1.0}, {}, [0.3, -0.2, -0.7, -0.05, -0.4, 0.0]),
        ("consensus_ta", {"weight": 1.0, "tall_lambda": 2.0}, {}, [0.3, 0.0, -0.7, 0.0, 0.0, 0.0]),
    ],
)
def test_by_hand(name: str, own: dict[str, Any], shared: dict[str, Any], expected: list[float]) -> None:
    """Small merges of three models, worked out on paper: what is added to the base.

    D_1     0.4   0.2  -0.5   0.1   -0.6   0.05
    D_2    -0.4  -0.3  -0.8   0.05   0.4   1.0
    D_3     0.3  -0.1   0.6  -0.2   -0.2  -0.2
    """
    merged = merge(name, [Model(tensor, own) for tensor in (A, B, D)], BASE, **shared)
    torch.testing.assert_close((merged - BASE).reshape(-1), torch.tensor(expected), rtol=1e-5, atol=2e-7)
