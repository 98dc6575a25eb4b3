"""The methods' formulas, written down once more: whole tensors, float64, numpy, no thought of speed.

They follow the published definitions (and mergekit's, where the papers leave a choice); the kernels are held to them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def linear(models: Sequence[Array], weights: Sequence[float], normalize: bool = True) -> Array:
    total = sum(weight * model for model, weight in zip(models, weights, strict=True))
    return np.asarray(total / sum(weights) if normalize else total)


def task_arithmetic(
    base: Array, models: Sequence[Array], weights: Sequence[float], normalize: bool = False, scale: float = 1.0
) -> Array:
    total = sum(weight * (model - base) for model, weight in zip(models, weights, strict=True))
    divisor = sum(weights) if normalize and abs(sum(weights)) >= 1e-8 else 1.0
    return np.asarray(base + scale * total / divisor)


def largest(magnitudes: Array, count: int) -> NDArray[np.bool_]:
    """The mask of the `count` largest, ties to the lowest flat index; NaN before all numbers."""
    flat = magnitudes.reshape(-1)
    order = np.lexsort((np.arange(flat.size), np.where(np.isnan(flat), 0.0, -flat), ~np.isnan(flat)))
    mask = np.zeros(flat.size, dtype=bool)
    mask[order[:count]] = True
    return mask.reshape(magnitudes.shape)


def trimmed(delta: Array, density: float, rescale: bool = False) -> Array:
    if density >= 1.0:
        return delta
    if density <= 0.0 or delta.size == 0:
        return np.zeros_like(delta)
    kept = np.where(largest(np.abs(delta), max(1, int(density * delta.size))), delta, 0.0)
    before, after = np.abs(delta).sum(), np.abs(kept).sum()
    return kept * (before / after) if rescale and before >= 1e-7 and after >= 1e-7 else kept


def consensus(deltas: Sequence[Array], weights: Sequence[float], normalize: bool, scale: float) -> Array:
    """The specification's order of operations, in the deltas' own dtype, one rounding per operation."""
    dtype = deltas[0].dtype.type
    factors = [dtype(weight) for weight in weights]
    values = [factor * delta for factor, delta in zip(factors, deltas, strict=True)]
    majority = np.where(_in_order(values) >= 0, dtype(1), dtype(-1))
    masks = [(np.sign(value) == majority).astype(dtype) for value in values]

    merged = _in_order([np.where(mask == 1, value, dtype(0)) for mask, value in zip(masks, values, strict=True)])
    if normalize:
        weight = _in_order([factor * mask for factor, mask in zip(factors, masks, strict=True)])
        merged = merged / np.where(weight == 0, dtype(1), weight)
    return np.asarray(merged if scale == 1.0 else merged * dtype(scale))


def ties(
    base: Array,
    models: Sequence[Array],
    weights: Sequence[float],
    densities: Sequence[float],
    normalize: bool = True,
    rescale: bool = False,
    scale: float = 1.0,
) -> Array:
    deltas = [trimmed(model - base, density, rescale) for model, density in zip(models, densities, strict=True)]
    return np.asarray(base + consensus(deltas, weights, normalize, scale))


def slerp(start: Array, end: Array, t: float) -> Array:
    norms = [float(np.linalg.norm(tensor)) for tensor in (start, end)]
    unit = [tensor / (norm if norm > 1e-8 else 1.0) for tensor, norm in zip((start, end), norms, strict=True)]
    cosine = float(np.clip((unit[0] * unit[1]).sum(), -1.0, 1.0))
    if abs(cosine) > 0.9995:
        return np.asarray((1 - t) * start + t * end)
    angle = np.arccos(cosine)
    return np.asarray((np.sin((1 - t) * angle) * start + np.sin(t * angle) * end) / np.sin(angle))


def _in_order(terms: Sequence[Array]) -> Array:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
