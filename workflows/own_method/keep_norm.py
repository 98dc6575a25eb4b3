"""A merge method of one's own: task vectors are added, and each row keeps the length that it has in the base."""

from __future__ import annotations

from typing import Annotated

import torch

import mergeflow


@mergeflow.merge_method(version=1, formula="R = B + sum(w_i * D_i), each row scaled to the norm of the base's")
def keep_norm(
    tensors: list[torch.Tensor],
    base: torch.Tensor,
    weight: mergeflow.PerModel[Annotated[float, "factor of this model's task vector"]] = 1.0,
    strength: Annotated[float, mergeflow.Bounds(0, 1), "0 adds alone, 1 restores the norm fully"] = 1.0,
) -> torch.Tensor:
    """Adds weighted task vectors to the base without making its rows longer or shorter."""
    merged = base.clone()
    for factor, tensor in zip(weight, tensors, strict=True):
        merged += factor * (tensor - base)
    if base.ndim < 2:
        return merged  # a norm's or a bias's own length means something

    before = torch.linalg.vector_norm(base, dim=-1, keepdim=True)  # (..., 1)
    after = torch.linalg.vector_norm(merged, dim=-1, keepdim=True)
    restored = torch.where(after > 0, before / after, 1.0)
    return merged * (1 + strength * (restored - 1))
