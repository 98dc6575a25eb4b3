"""The published test vectors of mergekit 0.1.5 (specification, appendix B), for the methods we have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from method_evaluation import Model, merge

BASE = torch.tensor([[0.5, -1, 2], [0.25, 0, -0.75]])
A = torch.tensor([[0.9, -0.8, 1.5], [0.35, -0.6, -0.70]])
B = torch.tensor([[0.1, -1.3, 1.2], [0.30, 0.4, 0.25]])

LINEAR = [
    ({}, [0.44285712, -1.0857142, 1.3285714, 0.32142857, -0.028571431, -0.15714286]),
    ({"normalize": False}, [0.62, -1.52, 1.8600001, 0.45000002, -0.040000007, -0.22000001]),
]

TASK_ARITHMETIC = [
    ({}, [0.41999996, -1.12, 1.0599999, 0.35000002, -0.039999992, 0.080000043]),
    (
        {"normalize": True, "lambda": 0.5},
        [0.47142857, -1.0428572, 1.6642858, 0.2857143, -0.014285711, -0.45357144],
    ),
]

TIES = [
    ({}, 0.5, [0.099999964, -1, 1.3285716, 0.25, -0.60000002, 0.25]),
    ({"normalize": False}, 0.5, [0.17999998, -1, 1.0599999, 0.25, -0.36000001, 0.050000012]),
    ({"rescale": True}, 0.5, [-0.036363661, -1, 1.1227274, 0.25, -0.74000001, 0.59090912]),
    ({}, 0.05, [0.5, -1, 2, 0.25, -0.60000002, 0.25]),
]


def models(dtype: torch.dtype = torch.float32, **parameters: Any) -> list[Model]:
    """Models a and b at weights 0.6 and 0.8, as stored in `dtype` and widened to float32."""
    return [
        Model(tensor.to(dtype).float(), {"weight": weight, **parameters}) for tensor, weight in ((A, 0.6), (B, 0.8))
    ]


def check(result: torch.Tensor, expected: list[float], relative: float = 5e-7) -> None:
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.reshape(-1), torch.tensor(expected), rtol=relative, atol=1.2e-7)


@pytest.mark.parametrize(("shared", "expected"), LINEAR)
def test_linear_gives_the_published_numbers(shared: dict[str, Any], expected: list[float]) -> None:
    """Linear merges of two models give mergekit's numbers to a unit in the last place."""
    check(merge("linear", models(), **shared), expected)


@pytest.mark.parametrize(("shared", "expected"), TASK_ARITHMETIC)
def test_task_arithmetic_gives_the_published_numbers(shared: dict[str, Any], expected: list[float]) -> None:
    """Task arithmetic on two models gives mergekit's numbers."""
    check(merge("task_arithmetic", models(), BASE, **shared), expected)


@pytest.mark.parametrize(("shared", "density", "expected"), TIES)
def test_ties_gives_the_published_numbers(shared: dict[str, Any], density: float, expected: list[float]) -> None:
    """TIES on two models gives mergekit's numbers, plain, unnormalized, rescaled, and with one survivor."""
    check(merge("ties", models(density=density), BASE, **shared), expected)


def test_slerp_gives_the_published_numbers() -> None:
    """SLERP from a to b at t = 0.35 gives mergekit's numbers."""
    expected = [0.66896069, -1.06845, 1.5192016, 0.3623049, -0.26340166, -0.39206755]
    check(merge("slerp", [Model(B)], A, t=0.35), expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("linear", [0.44140625, -1.0859375, 1.328125, 0.32226562, -0.029052734, -0.15722656]),
        ("slerp", [0.66796875, -1.0703125, 1.5234375, 0.36132812, -0.26367188, -0.390625]),
    ],
)
def test_bfloat16_models_give_the_published_numbers(name: str, expected: list[float]) -> None:
    """Merges of bfloat16 models, computed in float32 and rounded once, are mergekit's to a bfloat16 unit."""
    if name == "linear":
        result = merge("linear", models(torch.bfloat16))
    else:
        start, end = (tensor.bfloat16().float() for tensor in (A, B))
        result = merge("slerp", [Model(end)], start, t=0.35)
    check(result.bfloat16().float(), expected, relative=2.0**-8)
