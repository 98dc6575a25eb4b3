"""Task vectors, trimmed, masked, elected, and added to their base."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.exact.inputs import Inputs, largest, rescaled, weighted


def masked(it: Inputs, masks: Sequence[Tensor]) -> list[Tensor]:
    return [rescaled(delta, delta * mask, it.shared["rescale"]) for delta, mask in zip(it.deltas, masks, strict=True)]


def trimmed(it: Inputs) -> list[Tensor]:
    """TIES: the density * size largest of each, at least one."""
    size = it.models[0].numel()
    kept = [min(size, max(1, int(density * size))) if density > 0 else 0 for density in it.each("density")]
    return masked(it, [largest(delta.abs(), 0, k) for delta, k in zip(it.deltas, kept, strict=True)])


def without_outliers(it: Inputs) -> list[Tensor]:
    """Breadcrumbs: the density * size next to the gamma * size largest."""
    size = it.models[0].numel()
    masks = []
    for delta, density, gamma in zip(it.deltas, it.each("density"), it.each("gamma"), strict=True):
        kept, outliers = (size, 0) if density >= 1 else (int(density * size), int(gamma * size))
        first = min(outliers, size - kept)
        masks.append(largest(delta.abs(), first, first + kept))
    return masked(it, masks)


def by_chance(it: Inputs) -> list[Tensor]:
    """DARE and DELLA: what the masks left."""
    return masked(it, it.masks)


def added(it: Inputs, deltas: Sequence[Tensor], elect: bool) -> Tensor:
    """B + lambda * sum(m_i w_i D_i), divided by the weights that took part if asked."""
    return it.placed(it.shared["lambda"] * elected(it, deltas, normalize=it.shared["normalize"], elect=elect))


def elected(it: Inputs, deltas: Sequence[Tensor], *, normalize: bool, elect: bool = True) -> Tensor:
    """sum(m_i w_i D_i), m_i = 1 for all, or for those that have the sign of sum(w_i D_i)."""
    weights = it.each("weight")
    votes = [weight * delta for weight, delta in zip(weights, deltas, strict=True)]
    masks = [torch.ones_like(vote) for vote in votes]
    if elect:
        majority = torch.where(torch.stack(votes).sum(0) >= 0, 1.0, -1.0)
        masks = [(vote.sign() == majority).double() for vote in votes]
    merged = weighted(votes, masks)
    if normalize:
        total = weighted(masks, weights)
        merged = merged / torch.where(total.abs() < (1e-300 if elect else 1e-8), 1.0, total)
    return merged


def sce(it: Inputs) -> Tensor:
    assert it.base is not None
    deltas = it.deltas
    share = it.shared["select_topk"]
    if share < 1:
        stacked = torch.stack(deltas)
        variance = ((stacked - stacked.mean(0)) ** 2).mean(0)
        kept = int(int((variance != 0).sum()) * share) if share > 0 else 0
        deltas = [delta * largest(variance, 0, kept) for delta in deltas]
    majority = torch.where(torch.stack(deltas).sum(0) >= 0, 1.0, -1.0)
    masks = [(delta.sign() == majority).double() for delta in deltas]
    squares = [float((delta**2).mean()) for delta in deltas]
    total = sum(squares)
    weights = [1 / len(deltas) if total < 1e-6 else square / total for square in squares]
    divisor = weighted(masks, weights).clamp(min=1e-6)
    return it.base + weighted([delta * mask for delta, mask in zip(deltas, masks, strict=True)], weights) / divisor


def ram(it: Inputs, boosts: Sequence[float] | None = None) -> Tensor:
    assert it.base is not None
    changed = [(delta.abs() > it.shared["epsilon"]).double() for delta in it.deltas]
    count = torch.stack(changed).sum(0)
    parts = [delta * own for delta, own in zip(it.deltas, changed, strict=True)]
    unique = weighted([part * (count == 1) for part in parts], boosts or [1.0] * len(parts))
    common = torch.stack(parts).sum(0) * (count > 1) / count.clamp(min=1)
    return it.base + unique + common


def ramplus_tl(it: Inputs) -> Tensor:
    epsilon, r, alpha = (it.shared[name] for name in ("epsilon", "r", "alpha"))
    changed = [delta.abs() > epsilon for delta in it.deltas]
    count = torch.stack(changed).sum(0)
    boosts = []
    for own in changed:
        ratio = float((own & (count > 1)).sum()) / max(float((own & (count == 1)).sum()), epsilon)
        boosts.append(1 + r * min(max(ratio, 0.0), alpha))
    return ram(it, boosts)


def magmax(it: Inputs) -> Tensor:
    """Of equal magnitudes, the one that is listed first: `max` gives the first of them, too."""
    votes = torch.stack([weight * delta for weight, delta in zip(it.each("weight"), it.deltas, strict=True)])
    strongest = votes.abs().max(0, keepdim=True).indices
    return it.placed(it.shared["lambda"] * votes.gather(0, strongest)[0])


def emr(it: Inputs) -> Tensor:
    deltas = it.deltas
    votes = torch.stack([weight * delta for weight, delta in zip(it.each("weight"), deltas, strict=True)])
    sign = votes.sum(0).sign()
    unified = sign * (votes * sign).clamp(min=0).amax(0)
    for delta, is_task in zip(deltas, it.each("task"), strict=True):
        if is_task:
            unified = rescaled(delta, unified * (unified * delta > 0), True)
    return it.placed(it.shared["lambda"] * unified)


def consensus_ta(it: Inputs) -> Tensor:
    weights = it.each("weight")
    divisor = sum(weights) if it.shared["normalize"] else 1.0
    total = weighted(it.deltas, weights)
    return it.placed(it.shared["lambda"] / divisor * total * needed(it, total))


def consensus_ties(it: Inputs) -> Tensor:
    """TIES, without rescaling and with lambda at the end; the masks look at its sum before it is normalized."""
    plain = Inputs(it.models, it.base, it.own, {**it.shared, "rescale": False, "lambda": 1.0})
    total = elected(plain, trimmed(plain), normalize=False)
    merged = elected(plain, trimmed(plain), normalize=it.shared["normalize"])
    return it.placed(it.shared["lambda"] * merged * needed(it, total))


def needed(it: Inputs, total: Tensor) -> Tensor:
    """1 where consensus_k models, or all of them, need an element of the merged task vector (TALL masks)."""
    votes = [weight * delta for weight, delta in zip(it.each("weight"), it.deltas, strict=True)]
    masks = [
        vote.abs() >= strict * (total - vote).abs() for vote, strict in zip(votes, it.each("tall_lambda"), strict=True)
    ]
    least: int = min(it.shared["consensus_k"], len(masks))
    return torch.stack(masks).sum(0) >= least
