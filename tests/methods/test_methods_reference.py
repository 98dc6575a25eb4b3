"""Every method equals its float64 reference, on any shape, any number of models, float32 and float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import reference_methods as reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_evaluation import Model, merge
from numpy.typing import NDArray
from torch import Tensor

SHAPES = st.sampled_from([(), (1,), (63,), (7, 9), (3, 1, 5), (0,), (4, 0)])
DTYPES = st.sampled_from([torch.float32, torch.float64])

# Multiples of 1/8 with weights of few bits: sums are exact, so a sign that is elected, and an element that ties with
# the threshold, are the same in float32 and float64.
WEIGHTS = st.sampled_from([0.25, 0.5, 1.0, 1.5, -0.5, 0.0])
DENSITIES = st.sampled_from([0.0, 0.01, 0.2, 0.5, 0.9, 1.0])


@st.composite
def tensors(draw: st.DrawFn, count: int) -> list[Tensor]:
    """`count` tensors of one shape and dtype, with few distinct values."""
    shape, dtype = draw(SHAPES), draw(DTYPES)
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return [torch.from_numpy(np.asarray(generator.integers(-16, 17, shape) / 8.0)).to(dtype) for _ in range(count)]


def exact(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.double().numpy()


def check(result: Tensor, expected: NDArray[np.float64]) -> None:
    relative = 1e-12 if result.dtype == torch.float64 else 2e-6
    np.testing.assert_allclose(exact(result), expected, rtol=relative, atol=relative)


@given(st.data(), st.integers(1, 4), st.booleans())
def test_linear_is_the_weighted_mean(data: st.DataObject, count: int, normalize: bool) -> None:
    """linear is the weighted sum, divided by the sum of the weights when asked."""
    models = data.draw(tensors(count))
    weights = data.draw(st.lists(st.floats(0.1, 2.0), min_size=count, max_size=count))
    result = merge(
        "linear", [Model(x, {"weight": w}) for x, w in zip(models, weights, strict=True)], normalize=normalize
    )
    check(result, reference.linear([exact(model) for model in models], weights, normalize))


@given(st.data(), st.integers(1, 4), st.booleans(), st.sampled_from([1.0, 0.3, -1.0, 0.0]))
def test_task_arithmetic_adds_weighted_deltas(data: st.DataObject, count: int, normalize: bool, scale: float) -> None:
    """task_arithmetic adds the weighted deltas to the base; weights that cancel are not divided by."""
    base, *models = data.draw(tensors(count + 1))
    weights = data.draw(st.lists(WEIGHTS, min_size=count, max_size=count))
    listed = [Model(x, {"weight": w}) for x, w in zip(models, weights, strict=True)]
    result = merge("task_arithmetic", listed, base, normalize=normalize, **{"lambda": scale})
    expected = reference.task_arithmetic(exact(base), [exact(x) for x in models], weights, normalize, scale)
    check(result, expected)


@given(st.data(), st.integers(1, 4), st.booleans(), st.booleans(), st.sampled_from([1.0, 0.5, 0.0]))
def test_ties_trims_elects_and_combines(
    data: st.DataObject, count: int, normalize: bool, rescale: bool, scale: float
) -> None:
    """ties equals the whole-tensor formula: trimmed deltas, elected signs, the sum of those that agree."""
    base, *models = data.draw(tensors(count + 1))
    weights = data.draw(st.lists(WEIGHTS, min_size=count, max_size=count))
    densities = data.draw(st.lists(DENSITIES, min_size=count, max_size=count))
    # Rescaled magnitudes are no longer multiples of 1/8: let weights agree in sign, so that rounding elects nothing.
    weights = [abs(weight) for weight in weights] if rescale else weights
    base, models = (base, models) if not rescale else (base, [base + (model - base).abs() for model in models])

    listed = [
        Model(x, {"weight": weight, "density": density})
        for x, weight, density in zip(models, weights, densities, strict=True)
    ]
    result = merge("ties", listed, base, normalize=normalize, rescale=rescale, **{"lambda": scale})
    expected = reference.ties(
        exact(base), [exact(model) for model in models], weights, densities, normalize, rescale, scale
    )
    check(result, expected)


@given(st.data(), st.sampled_from([0.0, 0.2, 0.5, 1.0, 1.5, -0.5]))
def test_slerp_follows_the_arc(data: st.DataObject, t: float) -> None:
    """slerp equals the formula, for orthogonal, parallel, opposite and zero tensors too, inside [0, 1] and beyond."""
    start, other = data.draw(tensors(2))
    make: Callable[[], Tensor] = data.draw(
        st.sampled_from([lambda: other, lambda: 2 * start, lambda: -start, lambda: 0 * start])
    )
    end = make()
    check(merge("slerp", [Model(end)], start, t=t), reference.slerp(exact(start), exact(end), t))


@given(st.data(), st.sampled_from([None, 1.0, 0.5, 0.0, -2.0]))
def test_passthrough_scales(data: st.DataObject, scale: float | None) -> None:
    """passthrough is the tensor, multiplied by the scale when there is one."""
    (model,) = data.draw(tensors(1))
    check(merge("passthrough", [Model(model, {"scale": scale})]), exact(model) * (1.0 if scale is None else scale))


@given(st.data())
def test_task_vector_is_the_difference(data: st.DataObject) -> None:
    """task_vector is the model minus its base."""
    tuned, base = data.draw(tensors(2))
    check(merge("task_vector", [Model(tuned)], base), exact(tuned) - exact(base))
