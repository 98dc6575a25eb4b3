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

from mergeflow.methods import registry
from mergeflow.methods.ops import OPS
from mergeflow.methods.own import declare

SIZE = 65536 + 63


def fixed(seed: int) -> Tensor:
    """SIZE float32 numbers in [-1, 1), made by integer arithmetic alone; about one in eight is zero."""
    places = np.arange(SIZE, dtype=np.uint64) + np.uint64(seed * SIZE)
    mixed = (places * np.uint64(2654435761)) % np.uint64(2**32)
    mixed = ((mixed ^ (mixed >> np.uint64(15))) * np.uint64(2246822519)) % np.uint64(2**32)
    values = mixed.astype(np.float64) / 2**31 - 1.0
    return torch.from_numpy(np.where(mixed % np.uint64(8) == 0, 0.0, values).astype(np.float32))


X, Y, Z = (fixed(seed) for seed in range(3))
ROWS, OTHER_ROWS = (values[: 64 * 1024].view(64, 1024) for values in (X, Y))
HALF = {"threshold": 0.5, "cut": SIZE - 1}

QUARTILES = [{"threshold": threshold, "cut": 0} for threshold in (0.1, 0.2, 0.3)]
GRAMS = {"gram": [entry for entry in (2.0, 2.449, 3.0) for _ in range(1024)]}
GRAM = {"gram": [9.0, 1.0, -0.5, 4.0, 0.75, 2.0]}


def own_sum(tensors: list[Tensor], base: Tensor, t: float = 0.5) -> Tensor:
    """A user's method, to call the operations for them with."""
    return base + t * (tensors[0] - tensors[1])


OWN = declare(own_sum)
OWN_CALL = {"method": registry.identity(OWN), "arguments": {"t": 0.3}, "has_base": True}

COUNTS = {"unique": [100, 200, 300], "shared": [500, 400, 50]}

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
    "nuslerp": ([X, Y, {"gram": [2.0, 2.449, 3.0]}], {"t": 0.35}, 1, "f07696e3b805f778"),
    "nuslerp_rows": ([ROWS, OTHER_ROWS], {"t": 0.35}, 1, "cceb41ba52cb4734"),
    "nuslerp_columns": ([ROWS, OTHER_ROWS, GRAMS], {"t": 0.35, "columns": 1024}, 1, "465ec3bc09e2e807"),
    "multislerp": ([X, Y, Z, GRAM], {"weights": [0.3, 0.5, 0.2], "eps": 1e-8}, 1, "4d305396a5bb9001"),
    "karcher": ([X, Y, Z, GRAM], {"max_iter": 10, "tol": 1e-5}, 1, "9738ee3f3e1aa349"),
    "model_stock": ([X, Y, Z, GRAM], {}, 1, "b86c6172ecb8a22a"),
    "model_stock_rows": ([ROWS, OTHER_ROWS], {}, 1, "9b62693dce908723"),
    "geometric_median": (
        [X, Y, {"gram": [2.0, 0.5, 3.0]}],
        {"weights": [1.0, 0.9, 1.1], "max_iter": 100, "tol": 1e-6},
        1,
        "b283f2f7ba83eb07",
    ),
    "own_method": ([X, Y, Z], OWN_CALL, 1, "a53a4a449bff2662"),
    "own_pointwise": ([X, Y, Z], OWN_CALL, 1, "a53a4a449bff2662"),
    "ram": ([X, Y, Z], {"epsilon": 0.5}, 1, "80898fa07eae61a0"),
    "ram_plus": ([X, Y, Z, COUNTS], {"r": 0.3, "alpha": 0.5, "epsilon": 0.5}, 1, "a427722aa2ca468c"),
    "nearswap": ([X, Y], {"t": 0.3}, 1, "fbb2c022322ec2cb"),
    "perpendicular": ([X, Y, {"gram": [2.0, 0.5, 3.0]}], {"alpha": 0.7}, 1, "506902d9e29b93ce"),
    "largest_magnitude": ([X, Y, Z], {"weights": [0.3, 0.6, 1.0]}, 1, "3138fc34a4c6ee36"),
    "unify": ([X, Y, Z], {"weights": [0.3, 0.6, 1.0]}, 1, "a414e17b1f8cf83a"),
    "agreeing": ([X, Y], {}, 1, "a5bf403dce36fa6e"),
    "tall_mask": ([X, Y], {"weight": 0.7, "tall_lambda": 0.4}, 1, "9596ed5c9d740fe7"),
    "tall_vote": ([X, Y.sign(), Z.sign()], {"least": 1}, 1, "ca39ed0fce412dad"),
    "overlap_counts": ([X, Y, Z], {"epsilon": 0.5}, 1, "10b686bc1c16f312"),
    "trim_outliers": ([X, {"threshold": 0.8, "cut": 9}, HALF], {}, 1, "a52692d9087a72ce"),
    "drop": ([X], {"density": 0.3, "seed": 42, "stream": "a tensor"}, 1, "de1398ee3870e125"),
    "magprune": (
        [ROWS],
        {"density": 0.4, "epsilon": 0.2, "divide": True, "seed": 42, "stream": "a tensor"},
        1,
        "9b4bd1a1bedccff1",
    ),
    "consensus_by": (
        [X, Y, Z],
        {"weights": [0.3, -0.6, 1.0], "normalize": True, "lambda": 0.9, "election": "count"},
        1,
        "b8bdd6015b46e524",
    ),
    "variance": ([X, Y, Z], {}, 1, "ccdd0e949bcccefa"),
    "select": ([X, Y.abs(), HALF], {}, 1, "28818a7fe925dd63"),
    "sce": ([X, Y, Z, {"gram": [2.0]}, {"gram": [0.5]}, {"gram": [3.0]}], {"size": 1000}, 1, "6135866edb337138"),
    "fusion_importance": ([ROWS, OTHER_ROWS], {}, 1, "e7b5d6f7ca3002ae"),
    "fuse": ([X, Y, Z.abs(), *QUARTILES], {}, 1, "f33f2b7fa12c15bf"),
    "low_rank": ([X[: 200 * 300].view(200, 300)], {"rank": 5}, 1, "d82da9a832e65e2a"),
    "column_grams": ([ROWS, OTHER_ROWS], {"columns": 1024}, 1, "f3e7c0335904fb15"),
    "largest_share": ([X], {"share": 0.3}, 1, "b3a077d788af322b"),
    "kth_magnitude": ([X], {"k": SIZE // 3}, 1, "53436f71941e583e"),
    "magnitude_sum": ([X], {}, 1, "e0488d8a441b54b1"),
    "gram": ([X, Y, Z], {}, 1, "60ef0188507ca176"),
}


def digest(result: Any) -> str:
    """Of a tensor's bytes, or of a record with its floats in hexadecimal."""
    if isinstance(result, Tensor):
        return hashlib.sha256(result.numpy().tobytes()).hexdigest()[:16]
    exact = {
        name: [float(item).hex() for item in value] if isinstance(value, list) else float(value).hex()
        for name, value in sorted(result.items())
    }
    return hashlib.sha256(repr(exact).encode()).hexdigest()[:16]


def test_every_operation_has_a_digest() -> None:
    """No operation can change its bytes unnoticed. (Views have digests beside their own tests.)"""
    assert GOLDEN.keys() == {name for name, op in OPS.items() if op.kind != "view"}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_bytes_are_those_of_the_version(name: str) -> None:
    """The operation computes the bytes that its version stands for."""
    registry.register(OWN)
    inputs, parameters, version, expected = GOLDEN[name]
    assert (OPS[name].version, digest(apply(OPS[name], inputs, parameters))) == (version, expected)
