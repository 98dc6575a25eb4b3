"""Three merges as anyone would write them on paper, in float64: what every tensor of an output is checked against."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
_EXPERT = re.compile(r"(.+)\.experts\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.weight")

LINEAR = {
    "merge_method": "linear",
    "models": [{"model": "a", "parameters": {"weight": 3}}, {"model": "b", "parameters": {"weight": 1}}],
}
SLERP = {
    "merge_method": "slerp",
    "base_model": "a",
    "models": [{"model": "a"}, {"model": "b"}],
    "parameters": {"t": 0.3},
}
TIES = {
    "merge_method": "ties",
    "base_model": "a",
    "models": [{"model": "b", "parameters": {"density": 0.5, "weight": 1.0}}],
    "parameters": {"lambda": 0.8},
}


def linear(a: Array, b: Array) -> Array:
    return (3 * a + b) / 4


def slerp(a: Array, b: Array) -> Array:
    """Along the great circle, by 0.3 of the angle; along the line where the two nearly point the same way."""
    t = 0.3
    cosine = float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))
    if abs(cosine) > 0.9995:
        return (1 - t) * a + t * b
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def ties(a: Array, b: Array) -> Array:
    """One task vector of weight 1: its larger half, divided by its weight, times lambda."""
    delta = (b - a).ravel()
    kept = int(0.5 * delta.size) or 1
    mask = np.zeros(delta.size, bool)
    mask[np.argsort(-np.abs(delta), kind="stable")[:kept]] = True
    return a + 0.8 * np.where(mask, delta, 0.0).reshape(a.shape)


MERGES = ((LINEAR, linear), (SLERP, slerp), (TIES, ties))


def packed(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """The tensors with the experts of a layer stacked, as we name them: gate over up, and down."""
    found: dict[str, dict[tuple[str, int], Array]] = {}
    rest = {}
    for name, array in tensors.items():
        match = _EXPERT.fullmatch(name)
        if match:
            part = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}.get(match[3], match[3])
            found.setdefault(match[1], {})[part, int(match[2])] = array
        else:
            rest[name] = array
    for block, parts in found.items():
        count = len(parts) // 3
        gates = [np.concatenate([parts["gate_proj", e], parts["up_proj", e]]) for e in range(count)]
        new = block.replace("block_sparse_moe", "mlp")
        rest = {name.replace(f"{block}.", f"{new}."): array for name, array in rest.items()}
        rest[f"{new}.experts.gate_up_proj"] = np.stack(gates)
        rest[f"{new}.experts.down_proj"] = np.stack([parts["down_proj", e] for e in range(count)])
    return rest
