"""The methods that iterate on coefficients equal the formulas that iterate on tensors, in float64, on any shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import reference_span as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from method_evaluation import Model, merge
from reference_methods import Array
from torch import Tensor

SHAPES = st.sampled_from([(), (1,), (63,), (7, 9), (3, 1, 5), (0,), (4, 0)])
DTYPES = st.sampled_from([torch.float32, torch.float64])
WEIGHTS = st.sampled_from([0.25, 0.5, 1.0, 1.5])
EXAMPLES = settings(max_examples=40, deadline=None)


@st.composite
def tensors(draw: st.DrawFn, count: int) -> list[Tensor]:
    """`count` tensors of one shape and dtype; some are zero, opposite, parallel or equal to the one before."""
    shape, dtype = draw(SHAPES), draw(DTYPES)
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    made: list[Array] = []
    for _ in range(count):
        fresh = np.asarray(generator.integers(-16, 17, shape) / 8.0)
        factor = draw(st.sampled_from([None, None, None, 0.0, 1.0, 2.0, -1.0, -3.0])) if made else None
        made.append(fresh if factor is None else np.asarray(factor * made[-1]))
    return [torch.from_numpy(array).to(dtype) for array in made]


def exact(tensor: Tensor) -> Array:
    return tensor.double().numpy()


def check(result: Tensor, expected: Array, inputs: Sequence[Tensor]) -> None:
    """Equal to a few roundings of the inputs' magnitude."""
    largest = max([1.0, *(float(tensor.abs().max()) for tensor in inputs if tensor.numel())])
    relative = 1e-11 if result.dtype == torch.float64 else 3e-6
    np.testing.assert_allclose(exact(result), expected, rtol=relative, atol=relative * largest)


def weighed(models: Sequence[Tensor], weights: Sequence[float]) -> list[Model]:
    return [Model(tensor, {"weight": weight}) for tensor, weight in zip(models, weights, strict=True)]


@EXAMPLES
@given(st.data(), st.booleans(), st.sampled_from([(0.3, 0.5), (1.0, 0.0), (0.0, 2.0), (0.0, 0.0), (1.5, -0.5)]))
def test_nuslerp_follows_the_arc(data: st.DataObject, is_based: bool, weights: tuple[float, float]) -> None:
    """nuslerp is the formula on models and, with a base, on task vectors: zero, parallel and opposite ones too."""
    base, first, second = data.draw(tensors(3))
    given_base = base if is_based else None
    result = merge("nuslerp", weighed([first, second], weights), given_base)
    expected = reference.nuslerp(exact(first), exact(second), weights, exact(base) if is_based else None)
    check(result, expected, [base, first, second])


@EXAMPLES
@given(st.data(), st.integers(1, 4), st.booleans(), st.booleans(), st.sampled_from([1e-8, 0.0]))
def test_multislerp_is_the_mean_on_the_sphere(
    data: st.DataObject, count: int, is_based: bool, normalize: bool, eps: float
) -> None:
    """multislerp is the step on the sphere that is published, or the weighted sum where directions cancel."""
    base, *models = data.draw(tensors(count + 1))
    weights = data.draw(st.lists(WEIGHTS, min_size=count, max_size=count))
    given_base = base if is_based else None
    result = merge("multislerp", weighed(models, weights), given_base, normalize_weights=normalize, eps=eps)
    arrays = [exact(model) for model in models]
    expected = reference.multislerp(arrays, weights, exact(base) if is_based else None, normalize, eps)
    check(result, expected, [base, *models])


@EXAMPLES
@given(st.data(), st.integers(1, 5), st.sampled_from([0, 1, 10]), st.sampled_from([1e-5, 1e-3, 0.0]))
def test_karcher_is_the_mean_of_directions(data: st.DataObject, count: int, max_iter: int, tol: float) -> None:
    """karcher is the iteration on unit vectors, for equal, parallel and zero models too."""
    models = data.draw(tensors(count))
    result = merge("karcher", [Model(model) for model in models], max_iter=max_iter, tol=tol)
    check(result, reference.karcher([exact(model) for model in models], max_iter, tol), models)


@EXAMPLES
@given(st.data(), st.integers(2, 5))
def test_model_stock_moves_towards_the_mean(data: st.DataObject, count: int) -> None:
    """model_stock is t times the mean of the models and 1 - t times the base, t from the angles between deltas."""
    base, *models = data.draw(tensors(count + 1))
    result = merge("model_stock", [Model(model) for model in models], base)
    expected = reference.model_stock(exact(base), [exact(model) for model in models])
    check(result, expected, [20 * tensor for tensor in (base, *models)])


@EXAMPLES
@given(st.data(), st.integers(1, 5))
def test_geometric_median_takes_weiszfelds_steps(data: st.DataObject, count: int) -> None:
    """geometric_median is Weiszfeld's iteration on tensors, from the mean, for models that coincide too."""
    models = data.draw(tensors(count))
    weights = data.draw(st.lists(WEIGHTS, min_size=count, max_size=count))
    result = merge("geometric_median", weighed(models, weights), max_iter=20, tol=0.0)
    if models[0].numel():
        expected = reference.geometric_median([exact(model) for model in models], weights, 20)
        check(result, expected, [4 * model for model in models])


@given(st.data(), st.integers(1, 4))
def test_arithmetic_adds_with_any_sign(data: st.DataObject, count: int) -> None:
    """arithmetic is the weighted sum of models and deltas."""
    base, *deltas = data.draw(tensors(count + 1))
    factors = data.draw(st.lists(st.sampled_from([0.5, -0.25, 1.0, -3.0, 0.0]), min_size=count, max_size=count))
    models = [Model(d, {"weight": w}, "delta") for d, w in zip(deltas, factors, strict=True)]
    result = merge("arithmetic", [Model(base, {"weight": 1.0}), *models])
    expected = exact(base) + sum(w * exact(d) for d, w in zip(deltas, factors, strict=True))
    check(result, np.asarray(expected), [4 * base])


def tuned(seed: int, base: Tensor, spread: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (base + torch.randn(base.shape, generator=generator) * spread).bfloat16()


Formula = Callable[[Array, list[Array]], Array]

# method -> every model's parameters, whether it has a base, the formula over the base and the models.
ON_BFLOAT16: dict[str, tuple[dict[str, Any], bool, Formula]] = {
    "nuslerp": ({"weight": 0.4}, False, lambda base, m: reference.nuslerp(m[0], m[1], (0.4, 0.8))),
    "nuslerp on a base": ({"weight": 0.4}, True, lambda base, m: reference.nuslerp(m[0], m[1], (0.4, 0.8), base)),
    "multislerp": ({"weight": 0.4}, False, lambda base, m: reference.multislerp(m, (0.4, 0.8, 1.2))),
    "multislerp on a base": ({"weight": 0.4}, True, lambda base, m: reference.multislerp(m, (0.4, 0.8, 1.2), base)),
    "karcher": ({}, False, lambda base, m: reference.karcher(m)),
    "model_stock": ({}, True, lambda base, m: reference.model_stock(base, m)),
    "geometric_median": ({"weight": 1.0}, False, lambda base, m: reference.geometric_median(m, (1.0, 2.0, 3.0), 200)),
    "arithmetic": ({"weight": 1 / 6}, False, lambda base, m: np.asarray((m[0] + 2 * m[1] + 3 * m[2]) / 6)),
}


@pytest.mark.parametrize("spread", [0.02, 1e-3, 1.0])
@pytest.mark.parametrize("case", ON_BFLOAT16)
def test_bfloat16_is_rounded_once(case: str, spread: float) -> None:
    """On bfloat16 models, near their base or far from it, the result is the exact one to half a unit in the last place."""
    own, is_based, formula = ON_BFLOAT16[case]
    name = case.split()[0]
    base = (torch.randn(20000, generator=torch.Generator().manual_seed(0)) * 0.05).bfloat16()
    models = [tuned(seed, base.float(), 0.05 * spread) for seed in (1, 2, 3)][: 2 if name == "nuslerp" else 3]
    factors = [own["weight"] * (i + 1) for i in range(3)] if own else []
    listed = [Model(model.float(), {"weight": factors[i]} if own else {}) for i, model in enumerate(models)]

    result = exact(merge(name, listed, base.float() if is_based else None).bfloat16())
    wanted = formula(exact(base), [exact(model) for model in models])
    half_unit = np.exp2(np.floor(np.log2(np.maximum(np.abs(wanted), 1e-30))) - 8)
    rounding_of_float32 = 2.0**-22 * np.max([np.abs(exact(model)) for model in (base, *models)], axis=0)
    assert (np.abs(result - wanted) <= half_unit + rounding_of_float32).all()
