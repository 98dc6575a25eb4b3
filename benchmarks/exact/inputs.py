"""What a formula is given, and the sums and masks that formulas share; all in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Parameters = Mapping[str, Any]


@dataclass(frozen=True)
class Inputs:
    """What a formula is given. `masks`: of each model, 1 where an element stayed and 0 where it was dropped."""

    models: Sequence[Tensor]
    base: Tensor | None
    own: Sequence[Parameters]
    shared: Parameters
    masks: Sequence[Tensor] = field(default=())

    @property
    def deltas(self) -> list[Tensor]:
        """What each model adds to the base; the models themselves when there is none."""
        return [model if self.base is None else model - self.base for model in self.models]

    def each(self, name: str) -> list[Any]:
        """Every model's value of a parameter."""
        return [own[name] for own in self.own]

    def placed(self, delta: Tensor) -> Tensor:
        """The result of a delta: on the base, when there is one."""
        return delta if self.base is None else self.base + delta


def weighted(tensors: Sequence[Tensor], factors: Sequence[float | Tensor]) -> Tensor:
    """sum(c_i X_i)."""
    return torch.stack([factor * tensor for factor, tensor in zip(factors, tensors, strict=True)]).sum(0)


def largest(magnitudes: Tensor, first: int, last: int) -> Tensor:
    """1 at the elements of ranks first to last - 1 by magnitude, the largest at 0, equals by index; else 0."""
    order = torch.sort(magnitudes.reshape(-1), descending=True, stable=True).indices
    mask = torch.zeros_like(magnitudes).reshape(-1)
    mask[order[first:last]] = 1.0
    return mask.reshape(magnitudes.shape)


def rescaled(delta: Tensor, kept: Tensor, wanted: bool) -> Tensor:
    """What was kept, with the sum of magnitudes that the delta had."""
    before, after = float(delta.abs().sum()), float(kept.abs().sum())
    return kept * (before / after) if wanted and before >= 1e-7 and after >= 1e-7 else kept
