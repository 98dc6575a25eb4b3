"""Low rank: truncated singular value decompositions, exact where they can be, and the same on every machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from method_evaluation import Leaf, Model, lower, merge
from three_models import settle
from tiny_checkpoints import read_model, write_model
from torch import Tensor

import mergeflow
from mergeflow.methods.kernels.exact_products import product, sliced
from mergeflow.methods.kernels.low_rank import SMALL
from mergeflow.methods.kernels.orthonormal import orthonormal
from mergeflow.methods.kernels.symmetric import eigen


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


def low_rank(delta: Tensor, **parameters: float) -> Tensor:
    return merge("low_rank", [Model(delta, type="delta")], **parameters)


def best(delta: Tensor, rank: int) -> Tensor:
    """What LAPACK's decomposition gives, in float64."""
    left, values, right = torch.linalg.svd(delta.double(), full_matrices=False)
    return (left[..., :rank] * values[..., None, :rank]) @ right[..., :rank, :]


def fading(rows: int, columns: int, by: float) -> Tensor:
    """A matrix whose singular values fall like a geometric series, as those of a small fine-tune do."""
    turned = torch.linalg.qr(drawn(columns, columns, seed=1).double())[0]
    spread = torch.linalg.qr(drawn(rows, columns).double())[0]
    return ((spread * by ** torch.arange(columns)) @ turned.T).float()


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 24), st.integers(2, 24), st.integers(1, 8), st.integers(0, 99))
def test_a_small_matrix_is_reduced_exactly(rows: int, columns: int, rank: int, seed: int) -> None:
    """The result is the truncated decomposition, to the rounding of a float32."""
    delta = drawn(rows, columns, seed=seed)
    torch.testing.assert_close(low_rank(delta, rank=rank).double(), best(delta, rank), rtol=0.0, atol=2e-6)


@pytest.mark.parametrize("shape", [(300, 240), (240, 300)])
def test_a_large_matrix_is_reduced_by_iteration(shape: tuple[int, int]) -> None:
    """Upright or not, what a fading spectrum has in its first directions is found to the rounding of a float32."""
    delta = fading(*shape, by=0.8) if shape[0] >= shape[1] else fading(*shape[::-1], by=0.8).T.contiguous()
    assert min(shape) > SMALL
    torch.testing.assert_close(low_rank(delta, rank=12).double(), best(delta, 12), rtol=0.0, atol=1e-6)


def test_a_flat_spectrum_is_nearly_as_well_met() -> None:
    """Of noise nobody needs the very largest directions: what is left over is within 1 % of the least there can be."""
    delta = drawn(300, 240)
    left, least = (delta - low_rank(delta, rank=10)).norm(), (delta.double() - best(delta, 10)).norm()
    assert float(least) * (1 - 1e-6) <= float(left) <= float(least) * 1.01


@pytest.mark.parametrize("shape", [(30, 20), (300, 200)])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.99])
def test_energy_takes_the_least_rank_that_has_it(shape: tuple[int, int], share: float) -> None:
    """The sum of squares reaches the share, and with one direction fewer it would not."""
    delta = fading(*shape, by=0.9)
    energies = torch.linalg.svdvals(delta.double()) ** 2
    rank = int((energies.cumsum(0) < share * energies.sum()).sum()) + 1
    torch.testing.assert_close(low_rank(delta, energy=share).double(), best(delta, rank), rtol=0.0, atol=1e-6)


def test_energy_that_takes_many_directions() -> None:
    """Where most directions are needed, all of them are found at once."""
    delta = drawn(110, 100)
    energies = torch.linalg.svdvals(delta.double()) ** 2
    rank = int((energies.cumsum(0) < 0.9 * energies.sum()).sum()) + 1
    torch.testing.assert_close(low_rank(delta, energy=0.9).double(), best(delta, rank), rtol=0.0, atol=2e-6)


def test_a_stack_is_reduced_matrix_by_matrix() -> None:
    """Packed experts are as many matrices, each with its own directions."""
    stack = drawn(3, 12, 9)
    torch.testing.assert_close(low_rank(stack, rank=2).double(), best(stack, 2), rtol=0.0, atol=2e-6)


def test_what_has_the_rank_stays() -> None:
    """Vectors, numbers, and matrices with no more rows or columns than the rank are the delta itself: nothing to run."""
    for shape, rank in (((7,), 1), ((), 1), ((3, 9), 3), ((9, 3), 5), ((0, 4), 1), ((1, 6), 1)):
        assert isinstance(lower("low_rank", [Model(torch.ones(shape), type="delta")], rank=rank), Leaf)
    assert isinstance(lower("low_rank", [Model(torch.ones(3, 4), type="delta")], energy=1.0), Leaf)


def test_zero_stays_zero_and_damage_spreads() -> None:
    """No division by a length of zero; a NaN anywhere in a matrix leaves nothing of it that looks sound."""
    assert torch.equal(low_rank(torch.zeros(9, 8), rank=2), torch.zeros(9, 8))
    damaged = drawn(2, 9, 8)
    damaged[1, 3, 3] = torch.nan
    result = low_rank(damaged, rank=2)
    assert bool(result[1].isnan().all())
    assert bool(result[0].isfinite().all())


def test_rank_or_energy() -> None:
    """One of the two says how much stays; none or both is an error."""
    for given_ in ({}, {"rank": 2, "energy": 0.5}):
        with pytest.raises(ValueError, match="either a rank or an energy"):
            low_rank(drawn(4, 4), **given_)


def test_a_product_does_not_depend_on_the_order_of_its_sums() -> None:
    """Rows of what is summed in any other order, in pieces or at once: the same bits, near the exact product."""
    left, right = drawn(40, 3000).double() ** 3, drawn(3000, 30, seed=1).double()
    found = product(left, right)
    order = torch.randperm(3000, generator=torch.Generator().manual_seed(1))
    assert torch.equal(product(left[:, order], right[order]), found)
    assert torch.equal(product(sliced(left), right), found)
    scale = float(left.abs().max() * right.abs().max()) * 3000
    assert float((found - left @ right).abs().max()) < 1e-11 * scale


def test_jacobis_eigenvectors_are_right() -> None:
    """Odd and even sizes, equal eigenvalues, and none at all."""
    for matrix in (drawn(31, 31), drawn(40, 12), torch.zeros(5, 5), torch.eye(6)):
        gram = (matrix.T @ matrix).double().numpy()
        values, vectors = eigen(gram)
        np.testing.assert_allclose(values, np.linalg.eigvalsh(gram)[::-1], atol=1e-10)
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(len(gram)), atol=1e-12)
        np.testing.assert_allclose(gram @ vectors, vectors * values, atol=1e-10)


def test_a_basis_of_columns_that_depend_on_each_other() -> None:
    """Columns that others span already are zero; the rest are orthonormal and span the same."""
    columns = drawn(50, 4)
    basis = orthonormal(torch.cat([columns, columns @ drawn(4, 2)], dim=1))
    torch.testing.assert_close(basis[:, :4].T @ basis[:, :4], torch.eye(4, dtype=torch.float64), rtol=0.0, atol=1e-11)
    assert torch.equal(basis[:, 4:], torch.zeros(50, 2, dtype=torch.float64))


RECIPE = """\
mergeflow: 1
models: {base: ./base, a: ./a}
vars: {weight: 1.0}
steps:
  skill: {task_vector: {model: a, base: base}}
  small: {low_rank: {delta: skill, rank: 3}}
  final:
    merge_method: task_arithmetic
    base_model: base
    models: [{model: small, parameters: {weight: "${weight}"}}]
outputs: {final: {dtype: float32}}
"""


def test_a_step_of_a_recipe_kept_by_itself(tmp_path: Path) -> None:
    """In files it is what it is in memory; it is cached without being asked for, and read for another weight."""
    for seed, name in enumerate(("base", "a")):
        matrices = {f"model.layers.{layer}.mlp.down_proj.weight": drawn(120, 90, seed=seed + layer) for layer in (0, 2)}
        write_model(tmp_path / name, {**matrices, "model.norm.weight": drawn(90, seed=seed)})
    settle()
    folder = tmp_path
    (folder / "low.yaml").write_text(RECIPE)
    mergeflow.run(folder / "low.yaml", folder / "out")
    made, base, tuned = (read_model(folder / name) for name in ("out", "base", "a"))
    for name, tensor in base.items():
        expected = tensor + low_rank((tuned[name].float() - tensor.float()), rank=3) if tensor.ndim else tensor
        assert torch.equal(made[name], expected.to(made[name].dtype)), name

    plan = mergeflow.plan(mergeflow.load(folder / "low.yaml", weight=0.5), folder / "out")
    small = next(step for step in plan.steps if step.name == "small")
    assert small.computed == sum(1 for tensor in base.values() if tensor.ndim < 2)
    assert small.cached > 0
