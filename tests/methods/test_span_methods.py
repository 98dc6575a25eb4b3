"""The methods that a Gram matrix serves: published numbers, what they leave out, and what they make of hard inputs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import reference_span as reference
import torch
from method_evaluation import BLOCKS, Leaf, Model, Node, lower, merge
from torch import Tensor

from mergeflow.methods.kernels import arc, geometric_median, karcher, model_stock, multislerp
from mergeflow.methods.kernels.gram_matrix import length, lengths, matrix, products

BASE = torch.tensor([[0.5, -1, 2], [0.25, 0, -0.75]])
A = torch.tensor([[0.9, -0.8, 1.5], [0.35, -0.6, -0.70]])
B = torch.tensor([[0.1, -1.3, 1.2], [0.30, 0.4, 0.25]])
D = torch.tensor([[0.8, -1.1, 2.6], [0.05, -0.2, -0.95]])

# mergekit 0.1.5's results for these (specification, appendix B): method, inputs, weights, base, result.
PUBLISHED = [
    ("nuslerp", (A, B), (0.6, 0.8), None, [0.49015146, -1.1898373, 1.4603657, 0.3532058, -0.036178857, -0.17712492]),
    ("nuslerp", (A, B), (0.6, 0.8), BASE, [0.43663058, -1.1100053, 1.0610434, 0.35163862, -0.061587222, 0.064445615]),
    (
        "multislerp",
        (A, B, D),
        (1.0, 2.0, 1.0),
        None,
        [0.47754073, -1.2964821, 1.7243999, 0.30563301, 0.053851493, -0.2208793],
    ),
    (
        "multislerp",
        (A, B),
        (0.6, 0.8),
        BASE,
        [0.54992038, -1.0425829, 1.0595386, 0.36379483, -0.20996691, -0.034556866],
    ),
    ("karcher", (A, B, D), None, None, [0.61934173, -1.2243299, 1.8615746, 0.29223856, -0.10332417, -0.41720754]),
    ("model_stock", (A, B, D), None, BASE, [0.23992395, -0.82661605, 2.6068439, 0.29334599, 0.34676814, -1.4868821]),
]

WEIGHTED = ("nuslerp", "multislerp", "geometric_median", "arithmetic")
RELATIVE = ("nuslerp", "multislerp")
ALL = ("nuslerp", "multislerp", "karcher", "model_stock", "geometric_median")


def models(*tensors: Tensor, weights: tuple[float, ...] | None = None, delta: bool = False) -> list[Model]:
    own: list[dict[str, Any]] = [{"weight": weight} for weight in weights] if weights else [{} for _ in tensors]
    return [Model(t, values, "delta" if delta else "weights") for t, values in zip(tensors, own, strict=True)]


def by_default(name: str, *tensors: Tensor, base: Tensor | None = None, **shared: Any) -> Tensor:
    """The merge at equal weights; model_stock with the base, or zeros."""
    weights = (0.5,) * len(tensors) if name in WEIGHTED else None
    if name == "model_stock":
        base = torch.zeros_like(tensors[0]) if base is None else base
    return merge(name, models(*tensors, weights=weights), base, **shared)


def drawn(seed: int, size: int = 1000) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("name", "tensors", "weights", "base", "expected"), PUBLISHED)
def test_the_published_numbers(
    name: str,
    tensors: tuple[Tensor, ...],
    weights: tuple[float, ...] | None,
    base: Tensor | None,
    expected: list[float],
) -> None:
    """Small tensors give mergekit's numbers, to the rounding of mergekit's float32 sums."""
    result = merge(name, models(*tensors, weights=weights), base)
    torch.testing.assert_close(result.reshape(-1), torch.tensor(expected), rtol=2e-6, atol=5e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ALL)
def test_blocks_leave_no_trace(name: str, dtype: torch.dtype) -> None:
    """A merge in blocks is the merge of whole tensors, bit for bit."""
    tensors = [drawn(seed, 2 * 65536 + 63).to(dtype) for seed in (1, 2, 3)][: 2 if name == "nuslerp" else 3]
    whole, *blocked = [by_default(name, *tensors, block=block) for block in BLOCKS]
    assert all(torch.equal(whole, other) for other in blocked)


class TestWhatIsLeftOut:
    """A result that is an input is that input, so its bytes are copied."""

    @pytest.mark.parametrize("name", ["multislerp", "karcher", "geometric_median"])
    def test_a_single_model_is_the_result(self, name: str) -> None:
        """One model needs no merging; with a base, multislerp's weight still counts for nothing (as in mergekit)."""
        single = models(A, weights=(0.3,) if name in WEIGHTED else None)
        for base in (None, BASE) if name in RELATIVE else (None,):
            result = lower(name, single, base)
            assert isinstance(result, Leaf)
            assert result.tensor is A

    def test_nuslerp_at_its_ends(self) -> None:
        """A weight of zero leaves the other model, with and without a base."""
        for base in (None, BASE):
            for weights, expected in (((0.5, 0.0), A), ((0.0, 0.5), B)):
                result = lower("nuslerp", models(A, B, weights=weights), base)
                assert isinstance(result, Leaf)
                assert result.tensor is expected

    def test_models_of_weight_zero_have_no_distance(self) -> None:
        """geometric_median does not read them."""
        result = lower("geometric_median", models(A, B, D, weights=(0.0, 1.0, 0.0)))
        assert isinstance(result, Leaf)
        assert result.tensor is B

    @pytest.mark.parametrize("name", ALL)
    def test_empty_tensors_are_an_input(self, name: str) -> None:
        """A tensor without elements needs no operation."""
        tensors = [torch.zeros(0, 4) for _ in range(2)]
        base = torch.zeros(0, 4) if name == "model_stock" else None
        assert isinstance(lower(name, models(*tensors, weights=(1.0, 1.0) if name in WEIGHTED else None), base), Leaf)

    @pytest.mark.parametrize("name", RELATIVE)
    def test_a_changed_weight_needs_the_last_pass_only(self, name: str) -> None:
        """The Gram matrix, and the task vectors under it, are those of before."""

        def nodes(weight: float) -> dict[str, set[Node]]:
            result = lower(name, [Model(A, {"weight": weight}), Model(B, {"weight": 0.5})], BASE)
            assert isinstance(result, Node)
            found: dict[str, set[Node]] = {}
            for node in result.ancestors():
                found.setdefault(node.op, set()).add(node)
            return found

        # Leaves are told apart by identity, and each lowering makes its own: what must agree is all the rest.
        first, second = nodes(0.3), nodes(0.4)
        assert [node.parameters for node in first["gram"]] == [node.parameters for node in second["gram"]] == [()]
        assert first.keys() == second.keys() == {"add", name, "gram", "task_vector"}
        assert {node.parameters for node in first[name]} != {node.parameters for node in second[name]}


class TestDeltas:
    def test_a_delta_is_used_as_it_is(self) -> None:
        """On a base, weights and their task vectors give the same bytes."""
        for name in (*RELATIVE, "model_stock"):
            weights = (0.3, 0.5) if name in WEIGHTED else None
            from_weights = merge(name, models(A, B, weights=weights), BASE)
            from_deltas = merge(name, models(A - BASE, B - BASE, weights=weights, delta=True), BASE)
            assert torch.equal(from_weights, from_deltas)

    @pytest.mark.parametrize("name", RELATIVE)
    def test_a_single_delta_still_needs_its_base(self, name: str) -> None:
        """Where a model would be the result, a delta is added to the base."""
        deltas = models(A - BASE, B - BASE, weights=(1.0, 0.0), delta=True)
        result = merge(name, deltas[: 2 if name == "nuslerp" else 1], BASE)
        assert torch.equal(result, BASE + (A - BASE))


class TestHardInputs:
    """Zero, equal, parallel and opposite models, and those between."""

    @pytest.mark.parametrize("name", ALL)
    def test_equal_models_are_their_mean(self, name: str) -> None:
        """Copies of one model merge to that model, to rounding."""
        tensor = drawn(1)
        result = by_default(name, *(tensor.clone() for _ in range(2)))
        torch.testing.assert_close(result, tensor, rtol=3e-7, atol=0)

    @pytest.mark.parametrize("name", [*RELATIVE, "model_stock"])
    def test_models_equal_to_the_base_leave_it_as_it_is(self, name: str) -> None:
        """Deltas of zero add nothing, bit for bit, however many."""
        for count in (2,) if name == "nuslerp" else (2, 3, 5):
            assert torch.equal(by_default(name, *(BASE.clone() for _ in range(count)), base=BASE), BASE)

    @pytest.mark.parametrize("name", ALL)
    def test_zero_models_are_zero(self, name: str) -> None:
        """Where there is no direction there is nothing, and no NaN."""
        zeros = torch.zeros(100)
        assert torch.equal(by_default(name, zeros, zeros.clone()), zeros)

    @pytest.mark.parametrize("name", ALL)
    @pytest.mark.parametrize("angle", [math.pi, math.pi - 1e-6, math.pi - 1e-3, math.pi - 0.02])
    def test_opposite_models_are_not_blown_up(self, name: str, angle: float) -> None:
        """The merge of models that (nearly) cancel is no longer than twenty of them, and finite."""
        one, other = drawn(1, 10).double(), drawn(2, 10).double()
        one /= one.norm()
        other -= (other @ one) * one
        turned = 2 * (math.cos(angle) * one + math.sin(angle) * other / other.norm())
        for dtype in (torch.float32, torch.float64):
            result = by_default(name, one.to(dtype), turned.to(dtype))
            assert float(result.norm()) <= 20.0

    def test_the_case_that_mergekit_blows_up(self) -> None:
        """[1, 2, 3] and [-2, -4, -6] at weights 1 and 3 are interpolated, where mergekit gives [-1450, -2899, -4349]."""
        pair = models(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([-2.0, -4.0, -6.0]), weights=(1.0, 3.0))
        torch.testing.assert_close(merge("nuslerp", pair), torch.tensor([-1.25, -2.5, -3.75]))

    def test_directions_that_cancel_are_added(self) -> None:
        """multislerp of models whose directions cancel is their weighted sum; mergekit stops at three of them."""
        for tensors in ((A, -A), (A, -0.5 * A, -0.5 * A)):
            weights = (0.5, 0.5) if len(tensors) == 2 else (0.5, 0.25, 0.25)
            expected = sum(weight * tensor for weight, tensor in zip(weights, tensors, strict=True))
            torch.testing.assert_close(
                merge("multislerp", models(*tensors, weights=weights)), torch.as_tensor(expected)
            )

    def test_opposite_models_keep_the_first_direction(self) -> None:
        """karcher of a model and its opposite is the first's direction at their mean length."""
        torch.testing.assert_close(by_default("karcher", A, -3 * A), 2 * A)

    def test_models_too_short_for_a_direction_keep_their_mean(self) -> None:
        """karcher of models shorter than tol is their mean; mergekit writes zeros."""
        torch.testing.assert_close(by_default("karcher", 1e-3 * A, 1e-3 * B, tol=0.1), 0.5e-3 * (A + B))

    def test_weights_that_cancel_are_shared_evenly_by_nuslerp(self) -> None:
        """As in mergekit: of weights that sum to zero, neither model has the larger share."""
        halfway = merge("nuslerp", models(A, B, weights=(1.0, 1.0)))
        assert torch.equal(merge("nuslerp", models(A, B, weights=(0.5, -0.5))), halfway)

    @pytest.mark.parametrize("name", ALL)
    @pytest.mark.parametrize("damage", [torch.nan, torch.inf])
    def test_a_damaged_tensor_has_no_direction(self, name: str, damage: float) -> None:
        """A NaN or an infinity in one model is NaN in the result, rather than numbers that look sound."""
        damaged = drawn(1).clone()
        damaged[5] = damage
        assert by_default(name, damaged, drawn(2)).isnan().all()


class TestGeometricMedian:
    def test_an_outlier_does_not_pull(self) -> None:
        """However far the third model is, the median stays between the first two."""
        near = drawn(1)
        for far in (10.0, 1e3, 1e6):
            result = by_default("geometric_median", near, near + 0.01, near + far * drawn(3))
            assert float((result - near).norm()) <= 0.01 * math.sqrt(near.numel()) * 1.01

    def test_it_costs_least(self) -> None:
        """No step away from the result lowers the sum of distances, within what tol leaves."""
        tensors = [drawn(seed, 20).double() for seed in range(5)]
        weights = (1.0, 0.5, 2.0, 1.5, 0.7)
        arrays = [tensor.numpy() for tensor in tensors]
        median = merge("geometric_median", models(*tensors, weights=weights), max_iter=1000, tol=1e-12).numpy()
        least = reference.cost(median, arrays, weights)
        generator = np.random.default_rng(0)
        for size in (1e-3, 1e-1, 1.0):
            for _ in range(20):
                step = generator.standard_normal(20) * size
                assert reference.cost(median + step, arrays, weights) >= least

    def test_a_model_of_more_than_half_the_weight_is_the_median(self) -> None:
        """Its share is one, to the last bit, and not only nearly."""
        for place in range(3):
            weights = tuple(2.1 if i == place else 1.0 for i in range(3))
            shares = geometric_median.coefficients((2.0, 0.5, 3.0), weights, 100, 1e-6)
            assert shares == tuple(float(i == place) for i in range(3))

    def test_models_that_are_nearly_the_same(self) -> None:
        """Distances are those of the differences: the result is as exact as for models far apart."""
        apart = [torch.zeros(50).double(), *((drawn(seed, 50).double() * 1024).round() for seed in (1, 2, 3))]
        near = [4096 + tensor * 2.0**-20 for tensor in apart]
        result = by_default("geometric_median", *near)
        torch.testing.assert_close((result - 4096) * 2.0**20, by_default("geometric_median", *apart), rtol=0, atol=1e-5)

    @pytest.mark.parametrize(("weights", "words"), [((0.0, 0.0), "every weight is 0"), ((1.0, -0.5), "negative")])
    def test_weights_that_make_no_median_are_refused(self, weights: tuple[float, ...], words: str) -> None:
        """Weights that are all zero, or one below it."""
        with pytest.raises(ValueError, match=words):
            lower("geometric_median", models(A, B, weights=weights))


class TestArithmetic:
    def test_models_whose_weights_make_no_model_are_refused(self) -> None:
        """The factors of weights must sum to one; the message says what else could have been meant."""
        for weights, words in (((0.5, 0.3), r"\(0.5, 0.3\) sum to 0.8.*use linear"), ((1.0, -1.0), "task_vector")):
            with pytest.raises(ValueError, match=words):
                lower("arithmetic", models(A, B, weights=weights))

    def test_deltas_need_not_sum_to_anything(self) -> None:
        """A difference of skills is a delta; on a model it is a model."""
        skills = models(A, B, weights=(0.3, -0.7), delta=True)
        torch.testing.assert_close(merge("arithmetic", skills), 0.3 * A - 0.7 * B)
        torch.testing.assert_close(
            merge("arithmetic", [*models(BASE, weights=(1.0,)), *skills]), BASE + 0.3 * A - 0.7 * B
        )

    def test_sixth_digits_are_forgiven(self) -> None:
        """A third written as 0.333333 is a third."""
        merge("arithmetic", models(A, B, D, weights=(0.333333,) * 3))


def test_weights_that_cancel_cannot_be_normalized() -> None:
    """multislerp names the parameter that asks for a division by zero."""
    with pytest.raises(ValueError, match=r"sum to zero.*normalize_weights: false"):
        lower("multislerp", models(A, B, weights=(0.5, -0.5)))
    merge("multislerp", models(A, B, weights=(0.5, -0.5)), normalize_weights=False)


class TestCoefficients:
    """The modules of plain numbers: limits that no tensor brings about reliably."""

    def test_a_matrix_from_its_upper_half(self) -> None:
        """Entries of i <= j, row by row, make the whole matrix; lengths, products and combinations follow."""
        gram = matrix((4.0, 1.0, 2.0, 9.0, 3.0, 16.0))
        assert gram == ((4.0, 1.0, 2.0), (1.0, 9.0, 3.0), (2.0, 3.0, 16.0))
        assert lengths(gram) == (2.0, 3.0, 4.0)
        assert products(gram, (1.0, -1.0, 0.0)) == [3.0, -8.0, -1.0]
        assert length(gram, (1.0, -1.0, 0.0)) == math.sqrt(11.0)
        assert matrix((1.0, math.nan, 1.0)) is None

    def test_model_stock_stops_where_deltas_cancel(self) -> None:
        """t is 1 for parallel deltas, 0 for orthogonal ones, bounded below, and 0 where nothing is left of their sum."""
        for cosine, expected in ((1.0, 1.0), (0.0, 0.0), (-0.5, -2.0), (-0.99, -20.0), (-1.0, 0.0)):
            assert model_stock.ratio((1.0, cosine, 1.0)) == pytest.approx(expected)

    def test_steps_end(self) -> None:
        """karcher without steps is the normalized mean, and with any number of them lies on the sphere."""
        upper = (1.0, 0.2, -0.3, 1.0, 0.5, 1.0)
        shares = [karcher.coefficients(upper, steps, 1e-5) for steps in (0, 1, 10, 1000)]
        gram = matrix(upper)
        assert gram is not None
        assert all(length(gram, share) == pytest.approx(1.0, abs=1e-12) for share in shares)
        assert len(set(shares[0])) == 1
        assert shares[2] == pytest.approx(shares[3], abs=1e-5)
        assert shares[0] != pytest.approx(shares[2], abs=1e-3)

    def test_orders_change_no_coefficient(self) -> None:
        """Models in another order have the same coefficients, bit for bit."""
        upper, backwards = (2.0, 0.3, -0.1, 3.0, 0.7, 5.0), (5.0, 0.7, -0.1, 3.0, 0.3, 2.0)
        for there, back in (
            (karcher.coefficients(upper, 10, 1e-5), karcher.coefficients(backwards, 10, 1e-5)),
            (
                multislerp.coefficients(upper, (0.3, 0.5, 0.2), 1e-8),
                multislerp.coefficients(backwards, (0.2, 0.5, 0.3), 1e-8),
            ),
            (model_stock.coefficients(upper), model_stock.coefficients(backwards)),
        ):
            assert there == back[::-1]

    def test_nuslerp_keeps_to_the_arc_where_slerp_gives_up(self) -> None:
        """Nearly parallel vectors are still on their arc; nearly opposite ones are not."""
        near, opposite = (1.0, 0.9999, 1.0), (1.0, -0.9999, 1.0)
        assert arc.coefficients(near, 0.3) == (0.7, 0.3)
        assert sum(arc.nuslerp_coefficients(near, 0.3)) > 1.00001
        assert arc.coefficients(opposite, 0.3) == arc.nuslerp_coefficients(opposite, 0.3) == (0.7, 0.3)
