"""Sparsifiers and SCE, written down once more: whole tensors, float64, numpy, no thought of speed.

Random ones take their numbers (`kept_at_random`), since what they draw is another matter (test_counter_random).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from reference_methods import largest

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def without_outliers(magnitudes: Array, density: float, gamma: float) -> Mask:
    """The mask of Model Breadcrumbs: `keep` entries after the `top` largest, ties to the lowest flat index."""
    if density >= 1.0:
        return np.ones(magnitudes.shape, dtype=bool)
    keep, top = int(density * magnitudes.size), int(gamma * magnitudes.size)
    bottom = max(0, magnitudes.size - keep - top)
    return np.asarray(
        largest(magnitudes, magnitudes.size - bottom) & ~largest(magnitudes, magnitudes.size - bottom - keep)
    )


def keep_probability(delta: Array, density: float, epsilon: float) -> Array:
    """MAGPRUNE's probabilities: by rank in a row along the last axis, of equal magnitudes the first is the larger."""
    rows = np.abs(delta).reshape(-1, delta.shape[-1] if delta.ndim else 1)
    found = np.empty_like(rows)
    for row, chances in zip(rows, found, strict=True):
        count = len(row)
        for place, column in enumerate(sorted(range(count), key=lambda i: (-row[i], i))):
            share = (count - 1 - place) / (count - 1) if count > 1 else 0.5
            chances[column] = density - epsilon + 2 * epsilon * share
    return found.reshape(delta.shape)


def kept_at_random(delta: Array, probability: Array | float, drawn: Array, rescale: str | None) -> Array:
    """Entries whose number is below their probability, rescaled."""
    kept = np.where(drawn < probability, delta, 0.0)
    if rescale == "density":
        return np.asarray(kept / probability)
    return restored(kept, delta) if rescale == "l1" else kept


def restored(kept: Array, delta: Array) -> Array:
    """`kept`, scaled to the sum of magnitudes of `delta`."""
    before, after = np.abs(delta).sum(), np.abs(kept).sum()
    return kept * (before / after) if before >= 1e-7 and after >= 1e-7 else kept


def elected(deltas: Sequence[Array], weights: Sequence[float], election: str, normalize: bool) -> Array:
    """The consensus of weighted deltas under one of three electorates."""
    votes = [weight * delta for weight, delta in zip(weights, deltas, strict=True)]
    ballots = {
        "weighted": votes,
        "unweighted": [np.sign(weight) * delta for weight, delta in zip(weights, deltas, strict=True)],
        "count": [np.sign(vote) for vote in votes],
    }[election]
    majority = np.where(np.sum(ballots, axis=0) >= 0, 1.0, -1.0)
    masks = [np.sign(vote) == majority for vote in votes]
    merged = np.sum([np.where(mask, vote, 0.0) for mask, vote in zip(masks, votes, strict=True)], axis=0)
    weight = np.sum([np.where(mask, weight, 0.0) for mask, weight in zip(masks, weights, strict=True)], axis=0)
    return np.asarray(merged / np.where(weight == 0, 1.0, weight) if normalize else merged)


def sce(base: Array, models: Sequence[Array], share: float) -> Array:
    """Select, calculate, erase, in the specification's words."""
    deltas = [model - base for model in models]
    if share < 1.0:
        variance = np.var(deltas, axis=0)
        count = int(np.float32(np.count_nonzero(variance)) * np.float32(share))
        mask = largest(variance, count)
        deltas = [np.where(mask, delta, 0.0) for delta in deltas]
    energies = np.array([np.mean(delta**2) for delta in deltas])
    shares = energies / energies.sum() if energies.sum() >= 1e-6 else np.full(len(deltas), 1.0 / len(deltas))
    majority = np.where(np.sum(deltas, axis=0) >= 0, 1.0, -1.0)
    weights = [np.where(np.sign(delta) == majority, own, 0.0) for delta, own in zip(deltas, shares, strict=True)]
    merged = np.sum([delta * weight for delta, weight in zip(deltas, weights, strict=True)], axis=0)
    return np.asarray(base + merged / np.maximum(np.sum(weights, axis=0), 1e-6))
