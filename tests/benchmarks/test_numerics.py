"""Every method is as exact as a result in bfloat16 can be: off by one rounding at most, from the models' files on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.exact import FORMULAS, exact
from benchmarks.numerics import (
    MERGES,
    Errors,
    Exact,
    available,
    errors_of,
    exact_model,
    golden_models,
    in_units,
    masks_for,
    merge_by_mergeflow,
    name_of,
)
from benchmarks.numerics_page import page
from mergeflow.methods.table import METHODS


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values).reshape(2, 3)


BASE, A, B, D = (
    vector(0.5, -1, 2, 0.25, 0, -0.75),
    vector(0.9, -0.8, 1.5, 0.35, -0.6, -0.70),
    vector(0.1, -1.3, 1.2, 0.30, 0.4, 0.25),
    vector(0.8, -1.1, 2.6, 0.05, -0.2, -0.95),
)


def test_every_method_is_within_one_rounding_of_the_exact_result(tmp_path: Path) -> None:
    """bfloat16 models, merged through files in one run: no element is further off than rounding once may put it."""
    models = golden_models(tmp_path)
    merges = available()
    made = merge_by_mergeflow(merges, models, tmp_path / "out")
    for merge, tensors in zip(merges, made, strict=True):
        found = errors_of(tensors, exact_model(merge, models, masks_for(merge, models, tmp_path)))
        assert found.largest <= 1.0, name_of(merge)
        assert found.beyond == 0.0, name_of(merge)


def test_every_method_that_gives_a_model_is_measured() -> None:
    """A new method is given a formula and a merge; only what makes a delta of a delta has none."""
    measured = {merge.method for merge in MERGES}
    assert measured == {name for name, method in METHODS.items() if method.gives != "delta"}
    assert measured <= set(FORMULAS)


def test_the_unit_is_what_rounding_once_is_off_by_at_most() -> None:
    """Numbers rounded to bfloat16 are off by up to one unit and no more; a neighbour of the right one is off by more."""
    values = torch.linspace(-3, 3, 10_001).double()
    rounded = values.to(torch.bfloat16)
    found = in_units(rounded, Exact("x", values, values.abs()))
    assert 0.99 < float(found.max()) <= 1.0
    beside = (rounded.view(torch.int16) + 1).view(torch.bfloat16)
    assert float(in_units(beside, Exact("x", values, values.abs())).min()) > 0.99


@pytest.mark.parametrize(
    ("method", "models", "base", "own", "shared", "expected"),
    [
        ("linear", (A, B), None, {}, {"normalize": True}, [0.44285712, -1.0857142, 1.3285714, 0.32142857]),
        ("nuslerp", (A, B), None, {}, {}, [0.49015146, -1.1898373, 1.4603657, 0.3532058]),
        ("nuslerp", (A, B), None, {}, {"nuslerp_flatten": False}, [0.4603304, -1.1242514, 1.377322, 0.68206859]),
        ("karcher", (A, B, D), None, {}, {"tol": 1e-5, "max_iter": 10}, [0.61934173, -1.2243299, 1.8615746]),
        ("model_stock", (A, B, D), BASE, {}, {"filter_wise": False}, [0.23992395, -0.82661605, 2.6068439]),
        ("sce", (A, B), BASE, {}, {"select_topk": 0.5}, [0.099999994, -1, 2, 0.25, -0.60000002, -0.019402921]),
        ("ram", (A, B, D), BASE, {}, {"epsilon": 0.15}, [0.59999996, -1.05, 1.7666667, 0.049999997]),
        ("nearswap", (A,), BASE, {}, {"t": 0.1}, [0.60000002, -0.89999998, 1.9000001, 0.34999999]),
        (
            "breadcrumbs_ties",
            (A, B),
            BASE,
            {"density": 0.5, "gamma": 0.2},
            {"normalize": False, "rescale": False, "lambda": 1.0},
            [0.17999998, -0.88, 1.0599999, 0.25, 0.32000002, -0.75],
        ),
    ],
)
def test_formulas_give_mergekits_numbers(
    method: str,
    models: tuple[torch.Tensor, ...],
    base: torch.Tensor | None,
    own: dict[str, float],
    shared: dict[str, object],
    expected: list[float],
) -> None:
    """The exact formulas are those that mergekit's outputs follow, up to float32."""
    weights = [{"weight": weight, **own} for weight in (0.6, 0.8, 1.0)[: len(models)]]
    result = exact(method, models, base, weights, shared).reshape(-1)
    assert result[: len(expected)].tolist() == pytest.approx(expected, abs=1e-6)


def test_the_page_shows_errors_beside_mergekits() -> None:
    """A figure just above one rounding is not shown as one; what mergekit does not have is left open."""
    ours, theirs = Errors(1.0004, 0.5, 0.00012), Errors(37.4, 1.25, 0.125)
    rows = [
        {"merge": "ties", "models": "golden", "mergeflow": as_row(ours), "mergekit": as_row(theirs)},
        {"merge": "emr", "models": "golden", "mergeflow": as_row(Errors(0.98, 0.5, 0.0)), "mergekit": None},
    ]
    text = page(rows)
    assert "| ties | 1.0004 | 0.50 | 0.012 % | 37 | 1.25 | 12 % |" in text
    assert "| emr | 0.98 | 0.50 | 0 | - | - | - |" in text
    assert "Nothing has been measured yet" in page([])


def as_row(errors: Errors) -> dict[str, float]:
    return {"largest": errors.largest, "mean": errors.mean, "beyond": errors.beyond}
