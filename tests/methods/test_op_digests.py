"""Golden digests: an operation that computes other bytes than before must have a new version.

When a test here fails, the operation's results have changed, and every cached one is wrong under the old key: bump its
version in `mergeflow/methods/ops.py`, then write the new version and digest down here.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from method_evaluation import apply
from torch import Tensor

from mergeflow.methods.ops import OPS

SIZE = 65536 + 63


def fixed(seed: int) -> Tensor:
    """SIZE float32 numbers in [-1, 1), made by integer arithmetic alone; about one in eight is zero."""
    places = np.arange(SIZE, dtype=np.uint64) + np.uint64(seed * SIZE)
    mixed = (places * np.uint64(2654435761)) % np.uint64(2**32)
    mixed = ((mixed ^ (mixed >> np.uint64(15))) * np.uint64(2246822519)) % np.uint64(2**32)
    values = mixed.astype(np.float64) / 2**31 - 1.0
    return torch.from_numpy(np.where(mixed % np.uint64(8) == 0, 0.0, values).astype(np.float32))


X, Y, Z = (fixed(seed) for seed in range(3))
HALF = {"threshold": 0.5, "cut": SIZE - 1}

# op -> inputs, parameters, version, digest
GOLDEN: dict[str, tuple[list[Any], dict[str, object], int, str]] = {
    "cast": ([X], {"dtype": "float32"}, 1, "3e3a104fe67d39c1"),
    "task_vector": ([X, Y], {}, 1, "bd5fd8bf4d570628"),
    "add": ([X, Y], {}, 1, "09dfcceabac9eec3"),
    "scale": ([X], {"factor": 0.3}, 1, "365f8e79724c470f"),
    "weighted_sum": ([X, Y, Z], {"coefficients": [0.3, -0.7, 1.0]}, 1, "aaae6f9410a46e9c"),
    "trim": ([X, HALF], {}, 1, "df8d0a697064e545"),
    "rescale": ([X, {"sum": 3.0}, {"sum": 0.7}], {}, 1, "4a11b160f28d8ea6"),
    "consensus": ([X, Y, Z], {"weights": [0.3, 0.6, 1.0], "normalize": True, "lambda": 0.9}, 1, "eb1393d4fae75407"),
    "slerp": ([X, Y, {"gram": [2.0, 0.5, 3.0]}], {"t": 0.35}, 1, "1a558b88ee61fbb2"),
    "kth_magnitude": ([X], {"k": SIZE // 3}, 1, "53436f71941e583e"),
    "magnitude_sum": ([X], {}, 1, "e0488d8a441b54b1"),
    "gram": ([X, Y, Z], {}, 1, "60ef0188507ca176"),
}


def digest(result: Any) -> str:
    """Of a tensor's bytes, or of a record with its floats in hexadecimal."""
    if isinstance(result, Tensor):
        return hashlib.sha256(result.numpy().tobytes()).hexdigest()[:16]
    exact = {
        name: [item.hex() for item in value] if isinstance(value, list) else float(value).hex()
        for name, value in sorted(result.items())
    }
    return hashlib.sha256(repr(exact).encode()).hexdigest()[:16]


def test_every_operation_has_a_digest() -> None:
    """No operation can change its bytes unnoticed."""
    assert GOLDEN.keys() == OPS.keys()


@pytest.mark.parametrize("name", GOLDEN)
def test_the_bytes_are_those_of_the_version(name: str) -> None:
    """The operation computes the bytes that its version stands for."""
    inputs, parameters, version, expected = GOLDEN[name]
    assert (OPS[name].version, digest(apply(OPS[name], inputs, parameters))) == (version, expected)
