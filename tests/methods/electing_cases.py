"""Tensors and parameters for the methods that elect, mask and carry over."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from method_evaluation import Model
from torch import Tensor

SIZE = 2 * 65536 + 63

# Every method of these kernels, with parameters that make each of its parts do something.
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("ram", {}, {"epsilon": 0.01}),
    ("ramplus_tl", {}, {"epsilon": 0.02, "r": 0.7, "alpha": 2.0}),
    ("consensus_ta", {"weight": 0.7, "tall_lambda": 0.5}, {"lambda": 0.3}),
    ("consensus_ties", {"weight": 0.7, "tall_lambda": 0.5, "density": 0.4}, {"normalize": True, "consensus_k": 3}),
    ("magmax", {"weight": 0.7}, {"lambda": 0.5}),
    ("emr", {"weight": 0.7}, {}),
]
ADDING = [name for name, _, _ in CASES]


def model(seed: int, like: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Weights; near `like` when there is one, and then, as with real bf16 models, with many equal differences."""
    generator = np.random.default_rng(seed)
    change = torch.from_numpy(generator.standard_normal(SIZE) * (1.0 if like is None else 0.02))
    return (change if like is None else like + change).bfloat16().to(dtype)


def same(left: Tensor, right: Tensor) -> bool:
    """Whether both are the same bytes."""
    return left.dtype == right.dtype and left.numpy().tobytes() == right.numpy().tobytes()


def inputs(own: dict[str, Any], dtype: torch.dtype = torch.float32, count: int = 3) -> tuple[Tensor, list[Model]]:
    """A base and models tuned from it, each with these parameters."""
    base = model(0, dtype=dtype)
    return base, [Model(model(seed, base, dtype), own) for seed in range(1, count + 1)]
