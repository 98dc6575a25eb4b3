"""Sums of whole tensors, and combinations that their angles and distances decide."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.exact.inputs import Inputs, Parameters, weighted


def cosine(left: Tensor, right: Tensor, least: float) -> float:
    """Of the angle between two tensors as vectors; lengths shorter than `least` are taken for that."""
    lengths = max(float(left.norm()), least) * max(float(right.norm()), least)
    return min(1.0, max(-1.0, float((left * right).sum()) / lengths))


def linear(it: Inputs) -> Tensor:
    weights = it.each("weight")
    return weighted(it.models, weights) / (sum(weights) if it.shared["normalize"] else 1.0)


def passthrough(it: Inputs) -> Tensor:
    (scale,) = it.each("scale")
    return it.models[0] * (1.0 if scale is None else scale)


def slerp(it: Inputs) -> Tensor:
    t = it.shared["t"]
    assert it.base is not None
    (other,) = it.models
    lengths = [length if (length := float(tensor.norm())) > 1e-8 else 1.0 for tensor in (it.base, other)]
    dot = min(1.0, max(-1.0, float((it.base / lengths[0] * other / lengths[1]).sum())))
    return weighted([it.base, other], (1 - t, t) if abs(dot) > 0.9995 else arc(dot, t))


def arc(dot: float, t: float) -> tuple[float, float]:
    """The factors of two vectors at t of the arc between them."""
    angle = math.acos(dot)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def nuslerp(it: Inputs) -> Tensor:
    first, second = it.each("weight")
    t = 0.5 if abs(first + second) < 1e-6 else second / (first + second)
    return it.placed(along_vectors(it.deltas, it.shared, lambda pair: _nuslerp(pair, t)))


def _nuslerp(pair: Sequence[Tensor], t: float) -> Tensor:
    dot = cosine(pair[0], pair[1], 1e-7)
    return weighted(pair, (1 - t, t) if dot < -0.9995 or 1 - dot**2 <= 1e-16 else arc(dot, t))


def along_vectors(tensors: Sequence[Tensor], shared: Parameters, merge: Callable[[Sequence[Tensor]], Tensor]) -> Tensor:
    """A merge of whole tensors, or of each of their rows, or (NuSLERP's `row_wise`) of each vector along axis 0."""
    if shared.get("nuslerp_flatten", True) or tensors[0].ndim == 0:
        return merge([tensor.reshape(-1) for tensor in tensors]).reshape(tensors[0].shape)
    columns = shared.get("nuslerp_row_wise", False)
    turned = [tensor.transpose(0, -1) if columns else tensor for tensor in tensors]
    rows = [tensor.reshape(-1, tensor.shape[-1]) for tensor in turned]
    merged = torch.stack([merge([tensor[i] for tensor in rows]) for i in range(len(rows[0]))])
    result = merged.reshape(turned[0].shape)
    return result.transpose(0, -1) if columns else result


def multislerp(it: Inputs) -> Tensor:
    if len(it.models) == 1:
        return it.models[0]
    weights, eps, tensors = it.each("weight"), it.shared["eps"], it.deltas
    if it.shared["normalize_weights"]:
        weights = [weight / sum(weights) for weight in weights]
    lengths = [float(tensor.norm()) for tensor in tensors]
    units = [tensor / (length + eps) for tensor, length in zip(tensors, lengths, strict=True)]
    mean = weighted(units, weights)
    if float(mean.norm()) < eps:
        return it.placed(weighted(tensors, weights))
    mean = mean / mean.norm()
    tangent = weighted([unit - (unit * mean).sum() * mean for unit in units], weights)
    angle = float(tangent.norm()) + eps
    moved = mean * math.cos(angle) + tangent * (math.sin(angle) / angle)
    return it.placed(moved * sum(weight * length for weight, length in zip(weights, lengths, strict=True)))


def karcher(it: Inputs) -> Tensor:
    tol = it.shared["tol"]
    if len(it.models) == 1:
        return it.models[0]
    lengths = [float(model.norm()) for model in it.models]
    units = [model / length for model, length in zip(it.models, lengths, strict=True) if length > tol]
    mean = torch.stack(units).mean(0)
    mean = units[0] if float(mean.norm()) < tol else mean / mean.norm()
    for _ in range(it.shared["max_iter"]):
        step = torch.zeros_like(mean)
        for unit in units:
            dot = min(1.0, max(-1.0, float((mean * unit).sum())))
            angle = math.acos(dot)
            if angle >= tol:
                step += angle / math.sin(angle) * (unit - dot * mean) / len(units)
        length = float(step.norm())
        if length < tol:
            break
        mean = math.cos(length) * mean + math.sin(length) * step / length
        mean = mean / mean.norm()
    return sum(lengths) / len(lengths) * mean


def model_stock(it: Inputs) -> Tensor:
    assert it.base is not None
    if not it.shared["filter_wise"]:
        return it.base + _model_stock(it.deltas)
    rows = [delta.reshape(-1, delta.shape[-1]) if delta.ndim > 1 else delta.reshape(1, -1) for delta in it.deltas]
    merged = torch.stack([_model_stock([delta[i] for delta in rows]) for i in range(len(rows[0]))])
    return it.base + merged.reshape(it.base.shape)


def _model_stock(deltas: Sequence[Tensor]) -> Tensor:
    count = len(deltas)
    cosines = []
    for i in range(count):
        for j in range(i + 1, count):
            product = max(float(deltas[i].norm() * deltas[j].norm()), 1e-6)
            cosines.append(min(1.0, max(-1.0, float((deltas[i] * deltas[j]).sum()) / product)))
    mean = sum(cosines) / len(cosines)
    divisor = 1 + (count - 1) * mean
    t = 0.0 if divisor < 1e-6 else max(-20.0, count * mean / divisor)
    return t * torch.stack(list(deltas)).mean(0)


def geometric_median(it: Inputs) -> Tensor:
    """Weiszfeld's steps, until nothing moves; for models of which none is the median unless all are the same."""
    weights: list[float] = it.each("weight")
    median = weighted(it.models, weights) / sum(weights)
    for _ in range(1000):
        distances = [float((model - median).norm()) for model in it.models]
        if min(distances) == 0.0:
            break
        forces = [weight / distance for weight, distance in zip(weights, distances, strict=True)]
        moved = weighted(it.models, forces) / sum(forces)
        if torch.equal(moved, median):
            break
        median = moved
    return median
