"""How methods lower: which nodes a changed parameter touches, what is left out, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from method_evaluation import Leaf, Model, Node, lower

BASE, X, Y = (torch.arange(10.0) + offset for offset in (0.0, 1.0, 2.0))


def ties(weight: float = 0.5, density: float = 0.5, **shared: Any) -> Node:
    """A TIES merge of two models; weight and density are the first one's."""
    own = {"weight": weight, "density": density}
    result = lower("ties", [Model(X, own), Model(Y, {"weight": 0.5, "density": 0.3})], BASE, **shared)
    assert isinstance(result, Node)
    return result


def ops(result: Leaf | Node) -> list[str]:
    """The names of the distinct nodes below a result, sorted."""
    return sorted(node.op for node in set(result.ancestors())) if isinstance(result, Node) else []


def shapes(node: Leaf | Node) -> Any:
    """The node as nested tuples of op, parameters and inputs; a leaf is its first element."""
    if isinstance(node, Leaf):
        return node.tensor[0].item()
    return node.op, node.parameters, *(shapes(value) for value in node.inputs)


def test_ties_is_one_node_per_idea() -> None:
    """TIES lowers to task vectors, thresholds, trims, one consensus and one addition."""
    assert ops(ties()) == [
        "add", "consensus", "kth_magnitude", "kth_magnitude", "task_vector", "task_vector", "trim", "trim",
    ]  # fmt: skip


def test_a_weight_leaves_the_trimming_as_it_was() -> None:
    """Two TIES merges that differ in a weight, in lambda or in normalize differ in consensus and addition only."""
    before = {str(shapes(node)) for node in ties().ancestors()}
    for changed in (ties(weight=0.7), ties(normalize=False), ties(**{"lambda": 0.5})):
        new = [node.op for node in changed.ancestors() if str(shapes(node)) not in before]
        assert sorted(new) == ["add", "consensus"]


def test_a_density_leaves_the_other_model_as_it_was() -> None:
    """A changed density touches that model's threshold and trim, and no task vector."""
    before = {str(shapes(node)) for node in ties().ancestors()}
    new = {node.op for node in ties(density=0.2).ancestors() if str(shapes(node)) not in before}
    assert new == {"add", "consensus", "trim", "kth_magnitude"}


def test_the_number_kept_is_truncated_in_float64() -> None:
    """k is trunc(density * size), computed in float64, and at least 1."""
    for density, size, expected in ((0.29, 100, 28), (0.3, 10, 3), (0.001, 10, 1), (0.9999, 10, 9)):
        tensor = torch.arange(float(size))
        own = {"weight": 1.0, "density": density}
        result = lower("ties", [Model(tensor, own), Model(tensor + 1, own)], tensor)
        assert isinstance(result, Node)
        kept = {dict(node.parameters)["k"] for node in result.ancestors() if node.op == "kth_magnitude"}
        assert kept == {expected}


def test_nothing_is_trimmed_when_all_is_kept() -> None:
    """Density 1, and any positive density of a tensor of one element, need no threshold."""
    one = torch.tensor(3.0)
    for base, density in ((BASE, 1.0), (one, 0.2)):
        own = {"weight": 0.5, "density": density}
        result = lower("ties", [Model(base + 1, own), Model(base + 2, own)], base)
        assert "trim" not in ops(result)


def test_rescaling_measures_before_and_after() -> None:
    """rescale adds the sums of magnitudes of the delta and of the trimmed delta."""
    assert ops(ties(rescale=True)).count("magnitude_sum") == 4
    assert ops(ties(rescale=True)).count("rescale") == 2


def test_a_single_voter_needs_no_election() -> None:
    """Models of weight or density 0 take no part; one that is left is added, weighted."""
    assert "consensus" not in ops(ties(weight=0.0))
    assert "consensus" not in ops(ties(density=0.0))
    assert ops(ties(density=0.0)) == ["add", "kth_magnitude", "task_vector", "trim"]
    assert "scale" in ops(ties(density=0.0, normalize=False))


def test_empty_tensors_lower_to_an_input() -> None:
    """A tensor without elements is the base's, whatever the method."""
    base, tuned = torch.zeros(0, 4), torch.ones(0, 4)
    for name, own, shared in (
        ("ties", {"weight": 1.0, "density": 0.5}, {}),
        ("task_arithmetic", {"weight": 1.0}, {}),
        ("slerp", {}, {"t": 0.5}),
    ):
        result = lower(name, [Model(tuned, own)], base, **shared)
        assert isinstance(result, Leaf)
        assert result.tensor is base


def test_linear_leaves_out_models_without_weight() -> None:
    """A model of weight 0 is not read."""
    result = lower("linear", [Model(X, {"weight": 0.0}), Model(Y, {"weight": 2.0})])
    assert isinstance(result, Leaf)
    assert result.tensor is Y


def test_linear_of_weights_zero_is_zero() -> None:
    """Without normalize, all weights may be zero: the result is zeros, not an error."""
    result = lower("linear", [Model(X, {"weight": 0.0}), Model(Y, {"weight": 0.0})], normalize=False)
    assert shapes(result) == ("scale", (("factor", 0.0),), 1.0)


def test_coefficients_are_float64() -> None:
    """linear divides its weights in float64; they are rounded when the tensor's format is known."""
    result = lower("linear", [Model(X, {"weight": 1}), Model(Y, {"weight": 2})])
    assert shapes(result)[:2] == ("weighted_sum", (("coefficients", (1 / 3, 2 / 3)),))


@pytest.mark.parametrize("weights", [(0.0, 0.0), (0.5, -0.5), (0.1, 0.2, -0.3)])
def test_weights_that_cancel_cannot_be_normalized(weights: tuple[float, ...]) -> None:
    """linear refuses weights that sum to zero, up to rounding, and says how to go on."""
    with pytest.raises(ValueError, match=r"sum to zero.*normalize: false") as error:
        lower("linear", [Model(X + i, {"weight": weight}) for i, weight in enumerate(weights)])
    assert "\n" not in str(error.value)


def test_small_weights_are_weights() -> None:
    """Tiny weights that do not cancel are normalized like any others."""
    result = lower("linear", [Model(X, {"weight": 1e-12}), Model(Y, {"weight": 3e-12})])
    assert shapes(result)[1] == (("coefficients", (0.25, 0.75)),)


@pytest.mark.parametrize(
    ("name", "own", "shared", "parameter"),
    [
        ("linear", {"weight": float("nan")}, {}, "weight"),
        ("task_arithmetic", {"weight": float("inf")}, {}, "weight"),
        ("task_arithmetic", {"weight": 1.0}, {"lambda": float("nan")}, "lambda"),
        ("ties", {"weight": 1.0, "density": float("nan")}, {}, "density"),
        ("slerp", {}, {"t": float("nan")}, "t"),
        ("slerp", {}, {"t": float("-inf")}, "t"),
        ("passthrough", {"scale": float("inf")}, {}, "scale"),
    ],
)
def test_numbers_must_be_finite(name: str, own: dict[str, Any], shared: dict[str, Any], parameter: str) -> None:
    """NaN and infinity are refused as parameters, by name."""
    with pytest.raises(ValueError, match=f"{parameter} must be a finite number"):
        lower(name, [Model(X, own)], None if name in ("linear", "passthrough") else BASE, **shared)


@pytest.mark.parametrize(("name", "shared"), [("ties", {}), ("slerp", {"t": 0.5})])
def test_a_missing_base_is_named(name: str, shared: dict[str, Any]) -> None:
    """A method that needs a base says so when it has none."""
    own = {"weight": 1.0} if name == "ties" else {}
    with pytest.raises(ValueError, match="base_model"):
        lower(name, [Model(X, own)], None, **shared)
