"""The formulas of methods that elect, mask and carry over, once more: whole tensors, float64, numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from reference_methods import consensus, trimmed

Array = NDArray[np.float64]


def changed(deltas: Sequence[Array], epsilon: float) -> NDArray[np.bool_]:
    """(k, ...): where each model changed an element by more than epsilon."""
    return np.stack([np.abs(delta) > epsilon for delta in deltas])


def ram(base: Array, models: Sequence[Array], epsilon: float = 1e-5) -> Array:
    return ram_plus(base, models, 0.0, 0.0, epsilon)


def ram_plus(base: Array, models: Sequence[Array], r: float, alpha: float, epsilon: float = 1e-5) -> Array:
    deltas = [model - base for model in models]
    masks = changed(deltas, epsilon)
    count = masks.sum(axis=0)
    merged = np.zeros_like(base)
    for delta, mask in zip(deltas, masks, strict=True):
        unique, shared = mask & (count == 1), mask & (count > 1)
        divisor = max(int(unique.sum()), epsilon)
        strength = 1.0 + r * min(int(shared.sum()) / divisor, alpha) if divisor > 0 else 1.0
        merged = merged + np.where(unique, strength * delta, 0.0) + np.where(shared, delta / np.maximum(count, 1), 0.0)
    return np.asarray(base + merged)


def nearswap(base: Array, other: Array, t: float) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = np.clip(np.where(base == other, 0.0, t / np.abs(base - other)), 0.0, 1.0)
    return np.asarray(weight * other + (1.0 - weight) * base)


def perpendicular(base: Array, first: Array, second: Array, alpha: float) -> Array:
    kept, added = first - base, second - base
    square = float((kept * kept).sum())
    share = float((kept * added).sum()) / square if square > 0.0 else 0.0
    return np.asarray(base + kept + alpha * (added - share * kept))


def tall(values: Sequence[Array], total: Array, strictness: Sequence[float], least: int) -> NDArray[np.bool_]:
    """Where at least `least` of the tasks' masks are set; with fewer tasks, all of them."""
    masks = [np.abs(own) >= factor * np.abs(total - own) for own, factor in zip(values, strictness, strict=True)]
    return np.asarray(np.sum(masks, axis=0) >= min(least, len(values)))


def consensus_ta(
    base: Array,
    models: Sequence[Array],
    weights: Sequence[float],
    strictness: Sequence[float],
    least: int = 2,
    normalize: bool = False,
    scale: float = 1.0,
) -> Array:
    values = [weight * (model - base) for model, weight in zip(models, weights, strict=True)]
    total = np.sum(values, axis=0)
    divisor = sum(weights) if normalize and abs(sum(weights)) >= 1e-8 else 1.0
    return np.asarray(base + scale / divisor * np.where(tall(values, total, strictness, least), total, 0.0))


def consensus_ties(
    base: Array,
    models: Sequence[Array],
    weights: Sequence[float],
    densities: Sequence[float],
    strictness: Sequence[float],
    least: int = 2,
    normalize: bool = False,
    scale: float = 1.0,
) -> Array:
    deltas = [model - base for model in models]
    kept = [trimmed(delta, density) for delta, density in zip(deltas, densities, strict=True)]
    values = [weight * delta for delta, weight in zip(deltas, weights, strict=True)]
    voted = tall(values, consensus(kept, weights, False, 1.0), strictness, least)
    return np.asarray(base + scale * np.where(voted, consensus(kept, weights, normalize, 1.0), 0.0))


def magmax(base: Array, models: Sequence[Array], weights: Sequence[float], scale: float = 1.0) -> Array:
    values = np.stack([weight * (model - base) for model, weight in zip(models, weights, strict=True)])
    first_largest = np.argmax(np.abs(values), axis=0)
    return np.asarray(base + scale * np.take_along_axis(values, first_largest[None], axis=0)[0])


def emr(
    base: Array, models: Sequence[Array], weights: Sequence[float], task: int | None = None, scale: float = 1.0
) -> Array:
    deltas = [model - base for model in models]
    values = np.stack([weight * delta for weight, delta in zip(weights, deltas, strict=True)])
    sign = np.sign(values.sum(axis=0))
    unified = sign * np.where(np.sign(values) == sign, np.abs(values), 0.0).max(axis=0)
    if task is not None:
        own = deltas[task]
        unified = np.where(unified * own > 0.0, unified, 0.0)
        before, after = np.abs(own).sum(), np.abs(unified).sum()
        unified = unified * (before / after) if before >= 1e-7 and after >= 1e-7 else unified
    return np.asarray(base + scale * unified)
