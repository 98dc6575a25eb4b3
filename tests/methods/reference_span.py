"""The formulas of the methods that a Gram matrix serves, once more: whole tensors, float64, no coefficients.

They iterate on tensors, as the published definitions do, and so share nothing with the kernels but the constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from reference_methods import Array

OPPOSITE = -0.9995
NOTHING = 1e-7


def norm(tensor: Array) -> float:
    return float(np.sqrt((tensor * tensor).sum()))


def dot(left: Array, right: Array) -> float:
    return float((left * right).sum())


def nuslerp(first: Array, second: Array, weights: Sequence[float], base: Array | None = None) -> Array:
    if base is not None:
        return np.asarray(base + nuslerp(first - base, second - base, weights))
    total = sum(weights)
    t = 0.5 if abs(total) < 1e-6 else weights[1] / total
    cosine = dot(first / max(norm(first), 1e-7), second / max(norm(second), 1e-7))
    if cosine < OPPOSITE or 1.0 - cosine * cosine <= 1e-15:
        return np.asarray((1 - t) * first + t * second)
    angle = np.arccos(cosine)
    return np.asarray((np.sin((1 - t) * angle) * first + np.sin(t * angle) * second) / np.sin(angle))


def multislerp(
    models: Sequence[Array],
    weights: Sequence[float],
    base: Array | None = None,
    normalize: bool = True,
    eps: float = 1e-8,
) -> Array:
    if len(models) == 1:
        return models[0]
    if base is not None:
        return np.asarray(base + multislerp([model - base for model in models], weights, None, normalize, eps))
    shares = [weight / sum(weights) if normalize else weight for weight in weights]
    weighted = list(zip(shares, models, strict=True))
    units = [model / (norm(model) + eps) if norm(model) > 0 else model for model in models]
    mean = np.asarray(sum(share * unit for share, unit in zip(shares, units, strict=True)))
    if norm(mean) <= max(eps, NOTHING * sum(map(abs, shares))):
        return np.asarray(sum(share * model for share, model in weighted))

    mean = mean / norm(mean)
    tangents = [unit - dot(unit, mean) * mean for unit in units]
    tangent = np.asarray(sum(share * own for share, own in zip(shares, tangents, strict=True)))
    turn = norm(tangent) + eps
    direction = mean * np.cos(turn) + tangent * (np.sin(turn) / turn if turn > 0 else 1.0)
    return np.asarray(direction * sum(share * norm(model) for share, model in weighted))


def karcher(models: Sequence[Array], max_iter: int = 10, tol: float = 1e-5) -> Array:
    valid = [model / norm(model) for model in models if norm(model) > tol]
    if not valid or len(models) == 1:
        return np.asarray(sum(models) / len(models))

    least = max(tol, NOTHING)
    mean = np.asarray(sum(valid) / len(valid))
    mean = mean / norm(mean) if norm(mean) >= least else valid[0]
    for _ in range(max_iter):
        step = np.zeros_like(mean)
        for unit in valid:
            cosine = min(1.0, max(-1.0, dot(mean, unit)))
            angle = float(np.arccos(cosine))
            if angle >= least and cosine >= OPPOSITE:
                step = step + angle / np.sin(angle) * (unit - cosine * mean) / len(valid)
        length = norm(step)
        if length < least:
            break
        mean = np.cos(length) * mean + np.sin(length) * step / length
        mean = mean / norm(mean)
    return np.asarray(mean * sum(norm(model) for model in models) / len(models))


def model_stock(base: Array, models: Sequence[Array]) -> Array:
    deltas = [model - base for model in models]
    cosines = [
        max(-1.0, min(1.0, dot(left, right) / max(norm(left) * norm(right), 1e-6)))
        for left, right in combinations(deltas, 2)
    ]
    cosine, count = sum(cosines) / len(cosines), len(models)
    divisor = 1 + (count - 1) * cosine
    t = 0.0 if divisor < 1e-6 else max(-20.0, count * cosine / divisor)
    return np.asarray(t * sum(models) / count + (1 - t) * base)


def cost(point: Array, models: Sequence[Array], weights: Sequence[float]) -> float:
    """What the geometric median makes least."""
    return sum(weight * norm(model - point) for model, weight in zip(models, weights, strict=True))


def geometric_median(models: Sequence[Array], weights: Sequence[float], max_iter: int) -> Array:
    """Weiszfeld's steps from the mean; a model that is the median is found by comparing the pull of the others."""
    voters = [(model, weight) for model, weight in zip(models, weights, strict=True) if weight > 0]
    extent = max(norm(left - right) for left, _ in voters for right, _ in voters)
    for model, _ in voters:
        held, force, _, _ = _pulled(model, voters, extent)
        if norm(force) < held * (1 - 1e-9):
            return model

    point = np.asarray(sum(weight * model for model, weight in voters) / sum(weight for _, weight in voters))
    for _ in range(max_iter):
        held, force, target, total = _pulled(point, voters, extent)
        if total > 0:
            kept = min(1.0, held / norm(force)) if norm(force) > 0 else 1.0
            point = (1 - kept) * target / total + kept * point
    return point


def _pulled(point: Array, voters: Sequence[tuple[Array, float]], extent: float) -> tuple[float, Array, Array, float]:
    """The weight at the point; of the others the force, the sum of w X / d, and the sum of w / d."""
    held, force, target, total = 0.0, np.zeros_like(point), np.zeros_like(point), 0.0
    for model, weight in voters:
        distance = norm(model - point)
        if distance <= NOTHING * extent:
            held += weight
            continue
        force = force + weight * (model - point) / distance
        target = target + weight * model / distance
        total += weight / distance
    return held, force, target, total
