"""Methods that take a tensor's rows, or its columns, as vectors of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference_span as reference
import torch
from method_evaluation import BLOCKS, Model, Node, apply, lower, merge
from torch import Tensor

from mergeflow.methods.ops import OPS

BASE = torch.tensor([[0.5, -1, 2], [0.25, 0, -0.75]])
A = torch.tensor([[0.9, -0.8, 1.5], [0.35, -0.6, -0.70]])
B = torch.tensor([[0.1, -1.3, 1.2], [0.30, 0.4, 0.25]])
D = torch.tensor([[0.8, -1.1, 2.6], [0.05, -0.2, -0.95]])

ROWS = {"nuslerp_flatten": False}
COLUMNS = {"nuslerp_flatten": False, "nuslerp_row_wise": True}


def weighed(*tensors: Tensor) -> list[Model]:
    return [Model(tensor, {"weight": weight}) for tensor, weight in zip(tensors, (0.6, 0.8), strict=True)]


def drawn(shape: tuple[int, ...], count: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = np.random.default_rng(sum(shape) + count)
    return [torch.from_numpy(generator.standard_normal(shape)).to(dtype) for _ in range(count)]


def ops(name: str, models: list[Model], base: Tensor | None = None, **shared: Any) -> set[str]:
    lowered = lower(name, models, base, **shared)
    return {node.op for node in lowered.ancestors()} if isinstance(lowered, Node) else set()


@pytest.mark.parametrize(
    ("shared", "expected"),
    [
        (ROWS, [0.4603304, -1.1242514, 1.377322, 0.68206859, -0.12395429, -0.39232907]),
        (COLUMNS, [0.49232939, -1.2126746, 1.3993857, 0.35466629, -0.037881438, -0.16785061]),
    ],
)
def test_nuslerp_gives_the_published_numbers(shared: dict[str, Any], expected: list[float]) -> None:
    """Rows and columns as mergekit 0.1.5 takes them (specification, appendix B)."""
    result = merge("nuslerp", weighed(A, B), **shared)
    torch.testing.assert_close(result.reshape(-1), torch.tensor(expected), rtol=1e-6, atol=2e-7)


def test_model_stock_gives_the_published_numbers() -> None:
    """Filter-wise model stock of three models, as mergekit 0.1.5 computes it (specification, appendix B)."""
    result = merge("model_stock", [Model(A), Model(B), Model(D)], BASE, filter_wise=True)
    expected = [0.15440297, -0.76960206, 2.8063931, 0.26819742, 0.14557955, -1.0593565]
    torch.testing.assert_close(result.reshape(-1), torch.tensor(expected), rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (4, 6), (3, 4, 5), (2, 1, 3)])
def test_each_row_is_a_tensor_of_its_own(shape: tuple[int, ...]) -> None:
    """A row of the result is what the method makes of that row alone, to the last bits of a float32."""
    base, first, second = drawn(shape, 3)
    for name, models, of_rows in (
        ("nuslerp", weighed(first, second), ROWS),
        ("model_stock", [Model(first), Model(second)], {"filter_wise": True}),
    ):
        result = merge(name, models, base, **of_rows)
        for place in np.ndindex(shape[:-1]):
            own = [Model(model.tensor[place], model.parameters) for model in models]
            torch.testing.assert_close(result[place], merge(name, own, base[place]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (4, 6), (3, 4, 5), (3, 1, 2)])
def test_each_column_is_a_tensor_of_its_own(shape: tuple[int, ...]) -> None:
    """Columns run along the first axis, whatever the others are."""
    first, second = drawn(shape, 2)
    result = merge("nuslerp", weighed(first, second), **COLUMNS)
    for place in np.ndindex(shape[1:]):
        own = [tensor[(slice(None), *place)].contiguous() for tensor in (first, second)]
        torch.testing.assert_close(result[(slice(None), *place)], merge("nuslerp", weighed(*own)), rtol=1e-6, atol=1e-6)


def test_opposite_rows_are_joined_by_a_line() -> None:
    """What mergekit amplifies a thousandfold: the row lies between the two, and its neighbours are as they were."""
    first = torch.tensor([[1.0, 2.0, 3.0], [1.0, 0.0, 1.0]])
    second = torch.tensor([[-2.0, -4.0, -6.0], [0.0, 1.0, 1.0]])
    result = merge("nuslerp", [Model(first, {"weight": 1.0}), Model(second, {"weight": 3.0})], **ROWS)
    torch.testing.assert_close(result[0], 0.25 * first[0] + 0.75 * second[0])
    wanted = reference.nuslerp(first[1].double().numpy(), second[1].double().numpy(), (1.0, 3.0), None)
    np.testing.assert_allclose(result[1].double().numpy(), wanted, rtol=1e-6)


@pytest.mark.parametrize("name", ["column_grams", "nuslerp_columns"])
@pytest.mark.parametrize("columns", [3, 1000, 70_001])
def test_the_cut_into_blocks_changes_no_bit(name: str, columns: int) -> None:
    """Columns fewer and more than lanes, blocks that start anywhere in a row: the same bytes."""
    shape = (max(2, 150_000 // columns), columns)
    pair = drawn(shape, 2)
    grams = apply(OPS["column_grams"], pair, {"columns": columns})
    inputs, own = (pair, {}) if name == "column_grams" else ([*pair, grams], {"t": 0.3})
    whole, *cut = [apply(OPS[name], inputs, {"columns": columns, **own}, block) for block in (None, *BLOCKS)]
    assert all(torch.equal(torch.as_tensor(result), torch.as_tensor(whole)) for result in cut if name != "column_grams")
    assert all(result == whole for result in cut if name == "column_grams")


def test_a_tensor_of_one_vector_is_taken_whole() -> None:
    """A norm's weights, a matrix of one row or column: what the flat method computes, by the same operation."""
    for shape, shared in (((7,), ROWS), ((1, 7), ROWS), ((7,), COLUMNS), ((7, 1), COLUMNS), ((), ROWS)):
        pair = weighed(*drawn(shape, 2))
        assert ops("nuslerp", pair, **shared) == ops("nuslerp", pair)
    deltas = [Model(tensor) for tensor in drawn((7,), 2)]
    assert "gram" in ops("model_stock", deltas, torch.ones(7), filter_wise=True)
