"""DARE, Breadcrumbs, DELLA, SCE and the step `sparsify` equal their float64 references, and lower to shared nodes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import reference_sparsify as reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_evaluation import Leaf, Model, Node, evaluate, lower, merge, stream_name
from numpy.typing import NDArray
from torch import Tensor

from mergeflow.methods.kernels.chances import keep_probabilities
from mergeflow.methods.kernels.counter_random import uniform
from mergeflow.methods.kernels.magprune import descending_order
from mergeflow.methods.kernels.streams import stream_of

SHAPES = st.sampled_from([(), (1,), (63,), (7, 9), (3, 1), (1, 5), (3, 2, 5)])
DTYPES = st.sampled_from([torch.float32, torch.float64])
WEIGHTS = st.sampled_from([0.25, 0.5, 1.0, 1.5, -0.5])
DENSITIES = st.sampled_from([0.01, 0.2, 0.5, 0.9, 1.0])


@st.composite
def tensors(draw: st.DrawFn, count: int) -> list[Tensor]:
    """`count` tensors of one shape and dtype: multiples of 1/8 with many equal ones, so that sums are exact."""
    shape, dtype = draw(SHAPES), draw(DTYPES)
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return [torch.from_numpy(np.asarray(generator.integers(-16, 17, shape) / 8.0)).to(dtype) for _ in range(count)]


def exact(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.double().numpy()


def drawn(delta: Tensor, seed: int = 0) -> NDArray[np.float64]:
    """The numbers of a delta's elements."""
    return uniform(stream_of(seed, stream_name(delta)), 0, delta.numel()).double().numpy().reshape(delta.shape)


def check(result: Tensor, expected: NDArray[np.float64]) -> None:
    relative = 1e-12 if result.dtype == torch.float64 else 3e-6
    np.testing.assert_allclose(exact(result), expected, rtol=relative, atol=relative)


def sparsified(delta: Tensor, **shared: Any) -> Tensor:
    return merge("sparsify", [Model(delta, type="delta")], **shared)


def ops(result: Leaf | Node) -> Counter[str]:
    """How often each operation is among the distinct nodes below a result."""
    return Counter(node.op for node in set(result.ancestors())) if isinstance(result, Node) else Counter()


@given(st.data(), DENSITIES, st.sampled_from([None, "l1", "density"]))
def test_random_keeps_what_is_drawn(data: st.DataObject, density: float, rescale: str | None) -> None:
    """An element stays when its number is below density; rescaled to the L1 norm, or by 1 / density."""
    (delta,) = data.draw(tensors(1))
    result = sparsified(
        delta, method="random", density=density, rescale=rescale is not None, rescale_by=rescale or "l1"
    )
    expected = reference.kept_at_random(exact(delta), density, drawn(delta), rescale)
    check(result, expected if density < 1.0 else exact(delta))


@given(st.data(), DENSITIES, st.sampled_from([0.0, 0.01, 0.2, 0.7, 1.0]))
def test_outliers_and_small_entries_go(data: st.DataObject, density: float, gamma: float) -> None:
    """Of Breadcrumbs exactly trunc(density * n) entries stay, ties broken by index at both ends."""
    (delta,) = data.draw(tensors(1))
    magnitudes = delta.abs() + 1.0  # no zeros, so that what is kept can be counted
    result = sparsified(magnitudes, method="magnitude_outliers", density=density, gamma=gamma)
    mask = reference.without_outliers(exact(magnitudes), density, gamma)
    check(result, np.where(mask, exact(magnitudes), 0.0))
    assert int(torch.count_nonzero(result)) == min(delta.numel(), int(density * delta.numel()))


@given(st.data(), st.sampled_from([(0.5, 0.2), (0.3, 0.0), (0.9, 0.05)]), st.sampled_from([None, "l1", "density"]))
def test_della_keeps_by_rank(data: st.DataObject, chance: tuple[float, float], rescale: str | None) -> None:
    """The probability of an element rises with its rank in its row, from density - epsilon to density + epsilon."""
    (delta,) = data.draw(tensors(1))
    density, epsilon = chance
    settings = {"rescale": rescale is not None, "rescale_by": rescale or "l1"}
    result = sparsified(delta, method="della", density=density, epsilon=epsilon, **settings)
    probability = reference.keep_probability(exact(delta), density, epsilon)
    check(result, reference.kept_at_random(exact(delta), probability, drawn(delta), rescale))


@given(
    st.data(),
    st.sampled_from(["ties", "dare_ties", "breadcrumbs_ties"]),
    st.sampled_from(["weighted", "unweighted", "count"]),
    st.booleans(),
)
def test_signs_are_elected_by_whom_is_asked(data: st.DataObject, name: str, election: str, normalize: bool) -> None:
    """All methods with a consensus elect by weighted deltas, by unweighted ones, or by the number of models."""
    base, *models = data.draw(tensors(4))
    weights = data.draw(st.lists(WEIGHTS, min_size=3, max_size=3))
    listed = [Model(model, {"weight": weight}) for model, weight in zip(models, weights, strict=True)]
    result = merge(name, listed, base, election=election, normalize=normalize)
    deltas = [exact(model) - exact(base) for model in models]
    check(result, exact(base) + reference.elected(deltas, weights, election, normalize))


@given(st.data(), st.integers(1, 4), st.sampled_from([0.0, 0.05, 0.4, 0.9, 1.0]))
def test_sce_selects_calculates_and_erases(data: st.DataObject, count: int, share: float) -> None:
    """sce equals the specification's formula, whatever its number of models and share."""
    base, *models = data.draw(tensors(count + 1))
    result = merge("sce", [Model(model) for model in models], base, select_topk=share)
    check(result, reference.sce(exact(base), [exact(model) for model in models], share))


def test_sce_of_equal_models_is_the_base_but_for_topk_1() -> None:
    """Models that agree everywhere vary nowhere: nothing is selected, though their mean is no multiple of 1/3."""
    base = torch.zeros(4, 5)
    model = torch.full((4, 5), 0.1)
    listed = [Model(model.clone()) for _ in range(3)]
    assert torch.equal(merge("sce", listed, base, select_topk=0.9), base)
    torch.testing.assert_close(merge("sce", listed, base), model)


LARGE = (3, 200_003)


@pytest.mark.parametrize("share", [0.001, 0.3, 0.97])
def test_the_share_of_a_large_tensor_is_exact(share: float) -> None:
    """Of a tensor of many blocks, most of it zero, exactly the asked share of what is not zero is selected."""
    generator = np.random.default_rng(1)
    base = torch.zeros(LARGE)
    present = generator.random(LARGE) < 0.2
    models = [
        torch.from_numpy(np.where(present, generator.integers(-40, 41, LARGE) / 64.0, 0.0)).float() for _ in range(2)
    ]
    result = lower("sce", [Model(model) for model in models], base, select_topk=share)
    assert isinstance(result, Node)
    selected = next(node for node in result.ancestors() if node.op == "select")
    variance = np.var([exact(model) for model in models], axis=0).astype(np.float32)
    count = int(np.float32(np.count_nonzero(variance)) * np.float32(share))
    mask = reference.largest(variance.astype(np.float64), count)
    for block in (65536, 50_021, None):
        found = evaluate(selected, block).numpy()
        np.testing.assert_array_equal(found, np.where(mask, exact(models[0]), 0.0).reshape(-1).astype(np.float32))


def test_masks_are_nested() -> None:
    """What is kept at a lower density is kept at a higher one, so candidates of a sweep differ as little as can be."""
    delta = torch.from_numpy(np.random.default_rng(0).standard_normal((32, 300)).astype(np.float32))
    for method in ("random", "della", "magnitude"):
        masks = [sparsified(delta, method=method, density=density) != 0 for density in (0.2, 0.35, 0.8)]
        assert bool((masks[0] <= masks[1]).all())
        assert bool((masks[1] <= masks[2]).all())
        assert masks[0].sum() < masks[1].sum() < masks[2].sum()


def test_a_mask_depends_on_its_own_delta_alone() -> None:
    """Another model, its weight or its density changes nothing in what is dropped of this one."""
    base, delta = torch.zeros(40, 40), torch.ones(40, 40)
    alone = sparsified(delta, method="random", density=0.5)
    for other, own in ((torch.full((40, 40), 8.0), 0.3), (torch.full((40, 40), 2.0), 0.9)):
        listed = [Model(other, {"weight": 0.125, "density": own}), Model(delta, {"weight": 1.0, "density": 0.5})]
        merged = merge("dare_linear", listed, base, rescale=False)
        of_other = sparsified(other, method="random", density=own)
        assert torch.equal(merged - 0.125 * of_other, alone)


def test_della_keeps_large_entries_more_often() -> None:
    """Over many rows, the share kept at each rank is the probability of the formula."""
    rows = 20_000
    delta = torch.rand(rows, 5, generator=torch.Generator().manual_seed(0)) + 0.5
    kept = sparsified(delta, method="della", density=0.5, epsilon=0.4) != 0
    by_rank = torch.gather(kept, 1, descending_order(delta)).double().mean(dim=0).numpy()
    np.testing.assert_allclose(by_rank, [0.9, 0.7, 0.5, 0.3, 0.1], atol=0.02)
    np.testing.assert_allclose(keep_probabilities(5, 0.5, 0.4), [0.9, 0.7, 0.5, 0.3, 0.1])


def test_both_sorts_give_one_order() -> None:
    """Sorting packed integers, and a stable sort of numbers, order a row alike; NaN comes first."""
    values = torch.from_numpy(np.random.default_rng(0).integers(-3, 4, (40, 33)).astype(np.float32))
    values[3, 7], values[3, 9], values[4, 1] = torch.nan, torch.inf, -0.0
    assert torch.equal(descending_order(values), descending_order(values.double()))
    assert descending_order(values)[3, :2].tolist() == [7, 9]


def test_dare_keeps_the_expected_sum() -> None:
    """Divided by the density, the mean of what is kept is the mean of the delta, up to chance."""
    delta = torch.ones(1 << 17)
    for density in (0.1, 0.6):
        kept = sparsified(delta, method="random", density=density, rescale=True, rescale_by="density")
        assert abs(float(kept.double().mean()) - 1.0) < 5 * (1 / density - 1) ** 0.5 / delta.numel() ** 0.5


@pytest.mark.parametrize("damage", [torch.nan, torch.inf])
def test_damage_is_never_hidden(damage: float) -> None:
    """A NaN or infinity of a delta is none that is finite in the result, whether it was kept or dropped."""
    for place in range(20):
        delta = torch.ones(20)
        delta[place] = damage
        for method in ("random", "della", "magnitude_outliers"):
            result = sparsified(delta, method=method, density=0.4, gamma=0.1)
            assert not bool(result[place].isfinite()), (method, place)
            assert bool(torch.cat([result[:place], result[place + 1 :]]).isfinite().all())


def described(node: Leaf | Node) -> str:
    """A node by its operation, parameters and inputs; a leaf by its first element."""
    if isinstance(node, Leaf):
        return str(node.tensor[0].item())
    return f"{node.op}{node.parameters}({', '.join(map(described, node.inputs))})"


X, Y, BASE = torch.ones(100), torch.full((100,), 2.0), torch.zeros(100)


def dare(name: str = "dare_ties", weight: float = 0.5, **shared: Any) -> Leaf | Node:
    own = {"weight": weight, "density": 0.5}
    return lower(name, [Model(X, own), Model(Y, {"weight": 0.5, "density": 0.3})], BASE, **shared)


def test_sparsifying_is_shared() -> None:
    """A weight, the kind of sum and the step `sparsify` use the same nodes: what is dropped once is dropped for all."""
    first = dare()
    assert isinstance(first, Node)
    known = {described(node) for node in first.ancestors()}
    for other, new in (
        (dare(weight=0.7), {"consensus", "add"}),
        (dare("dare_linear"), {"weighted_sum", "add"}),
        (dare(election="count"), {"consensus_by", "add"}),
    ):
        assert isinstance(other, Node)
        assert {node.op for node in other.ancestors() if described(node) not in known} == new


def test_what_a_sparsifier_lowers_to() -> None:
    """One node per idea; none where everything is kept, and none where nothing is."""
    assert ops(dare(rescale=False)) == {"task_vector": 2, "drop": 2, "consensus": 1, "add": 1}
    assert ops(dare())["magnitude_sum"] == 4
    assert ops(dare("dare_linear", rescale_by="density"))["scale"] == 2
    delta = [Model(X, type="delta")]
    assert ops(lower("sparsify", delta, density=0.5, method="magnitude_outliers", gamma=0.0)) == {
        "trim": 1,
        "kth_magnitude": 1,
    }
    for method in ("magnitude", "random", "magnitude_outliers", "della"):
        assert isinstance(lower("sparsify", delta, density=1.0, method=method, epsilon=0.9, gamma=0.9), Leaf)
        assert ops(lower("sparsify", delta, density=0.0, method=method)) == {"scale": 1}


def test_the_seed_is_a_parameter_of_what_is_random() -> None:
    """Random operations carry the seed, so that another seed gives another key; the others do not."""
    for name in ("dare_ties", "della"):
        model = Model(X, {"weight": 0.5, "density": 0.5})
        (zero, seven) = (lower(name, [model], BASE, seed=seed) for seed in (0, 7))
        assert isinstance(zero, Node)
        assert isinstance(seven, Node)
        random = {"drop", "magprune"}
        assert {dict(node.parameters)["seed"] for node in seven.ancestors() if node.op in random} == {7}
        assert not any("seed" in dict(node.parameters) for node in seven.ancestors() if node.op not in random)


@pytest.mark.parametrize(("density", "epsilon"), [(0.1, 0.15), (0.15, 0.15), (0.9, 0.1), (0.95, 0.15)])
def test_probabilities_of_della_are_probabilities(density: float, epsilon: float) -> None:
    """density +- epsilon must lie between 0 and 1: else an error that names both parameters with their values."""
    own = {"weight": 1.0, "density": density, "epsilon": epsilon}
    with pytest.raises(ValueError, match=f"epsilon {epsilon:g} is too large for density {density:g}"):
        lower("della", [Model(X, own)], BASE)


def test_a_sum_counts_the_weights_of_all_models() -> None:
    """With normalize, dare_linear divides by all weights, of models too of which nothing is kept; dare_ties does not."""
    own = [{"weight": 1.0, "density": 1.0}, {"weight": 3.0, "density": 0.0}]
    listed = [Model(tensor, values) for tensor, values in zip((X, Y), own, strict=True)]
    assert torch.equal(merge("dare_linear", listed, BASE, normalize=True), X / 4)
    assert torch.equal(merge("dare_ties", listed, BASE, normalize=True), X)
