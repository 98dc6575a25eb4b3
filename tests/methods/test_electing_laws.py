"""What must hold of the methods that elect, mask and carry over: identities, symmetries, sharing, what is left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from electing_cases import ADDING, CASES, inputs, model, same
from method_evaluation import Leaf, Model, Node, lower, merge
from torch import Tensor


def ops(result: Leaf | Node) -> list[str]:
    """The names of the distinct nodes below a result, sorted."""
    return sorted(node.op for node in set(result.ancestors())) if isinstance(result, Node) else []


@pytest.mark.parametrize("name", ADDING)
def test_unchanged_models_leave_the_base_as_it_is(name: str) -> None:
    """Models equal to the base give the base, bit for bit."""
    base = model(0)
    own = {"weight": 1.0} if name.startswith("consensus") else {}
    assert same(merge(name, [Model(base.clone(), own), Model(base.clone(), own)], base), base)


@pytest.mark.parametrize("name", ADDING)
def test_a_single_model_is_that_model(name: str) -> None:
    """One model at weight 1 is that model, up to the rounding of its difference; RAM drops what is tiny."""
    base, (tuned,) = inputs({"weight": 1.0} if name.startswith("consensus") else {}, count=1)
    torch.testing.assert_close(merge(name, [tuned], base), tuned.tensor, rtol=0, atol=2e-5)


def test_one_task_of_one_model_is_that_model() -> None:
    """emr for the task of its only model is that model."""
    base, (tuned,) = inputs({"task": True}, count=1)
    torch.testing.assert_close(merge("emr", [tuned], base), tuned.tensor, rtol=0, atol=2e-6)


def test_equal_models_are_that_model() -> None:
    """Models that are all equal are what they have in common, where nothing is summed."""
    base, (tuned,) = inputs({}, count=1)
    twins = [Model(tuned.tensor.clone()) for _ in range(3)]
    for name in ("ram", "ramplus_tl", "magmax", "emr"):
        torch.testing.assert_close(merge(name, twins, base), tuned.tensor, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["ram", "magmax", "emr"])
def test_two_models_commute(name: str) -> None:
    """The order of two models changes no bit, ties of magmax aside."""
    base, listed = inputs({}, count=2)
    if name == "magmax":
        listed[1] = Model(base + 1.0 + model(3).abs())
    assert same(merge(name, listed, base), merge(name, listed[::-1], base))


def test_nothing_to_strengthen_is_ram() -> None:
    """ramplus_tl with r or alpha 0, or of one model, is ram, node for node."""
    base, listed = inputs({})
    plain = merge("ram", listed, base)
    for shared in ({"r": 0.0}, {"alpha": 0.0}):
        assert same(merge("ramplus_tl", listed, base, **shared), plain)
        assert "overlap_counts" not in ops(lower("ramplus_tl", listed, base, **shared))
    assert "overlap_counts" not in ops(lower("ramplus_tl", listed[:1], base))


def test_nearswap_is_exact_at_its_ends() -> None:
    """A t larger than every difference gives the other model bit for bit; t = 0 and below give the base."""
    base, other = model(0), model(1)
    assert same(merge("nearswap", [Model(other)], base, t=100.0), other)
    for t in (0.0, -1.0):
        result = lower("nearswap", [Model(other)], base, t=t)
        assert isinstance(result, Leaf)
        assert result.tensor is base


def test_what_is_added_is_orthogonal() -> None:
    """What perpendicular adds to the first model is orthogonal to the first model's task vector."""
    base, (first, second) = inputs({}, count=2)
    second = Model(second.tensor + (first.tensor - base) * 0.5)
    kept = (first.tensor - base).double()
    added = merge("perpendicular", [first, second], base).double() - first.tensor
    cosine = float(kept @ added / (kept.norm() * added.norm()))
    assert abs(cosine) < 1e-6


def test_without_masks_consensus_is_the_method_it_refines() -> None:
    """consensus_k 0 is task_arithmetic, and ties without normalizing, bit for bit."""
    own = {"weight": 0.7, "density": 0.4}
    base, listed = inputs(own)
    plain = [Model(entry.tensor, {"weight": 0.7}) for entry in listed]
    shared = {"lambda": 0.5}
    masked = merge("consensus_ta", plain, base, consensus_k=0, **shared)
    torch.testing.assert_close(masked, merge("task_arithmetic", plain, base, **shared), rtol=0, atol=3e-7)
    ties = merge("ties", listed, base, normalize=False)
    assert same(merge("consensus_ties", listed, base, consensus_k=0), ties)


def test_a_common_factor_of_the_weights_changes_no_mask() -> None:
    """Weights twice as large, and half of lambda, are the same consensus merge."""
    for name in ("consensus_ta", "consensus_ties"):
        base, light = inputs({"weight": 0.5})
        heavy = [Model(entry.tensor, {"weight": 1.0}) for entry in light]
        assert same(merge(name, light, base), merge(name, heavy, base, **{"lambda": 0.5}))


def test_a_delta_is_used_as_it_is() -> None:
    """Methods that add to a base give the same bytes for weights and for their task vectors."""
    for name, own, shared in CASES:
        base, listed = inputs(own)
        deltas = [Model(entry.tensor - base, own, "delta") for entry in listed]
        assert same(merge(name, listed, base, **shared), merge(name, deltas, base, **shared))
    base, pair = inputs({}, count=2)
    deltas = [Model(entry.tensor - base, {}, "delta") for entry in pair]
    assert same(merge("perpendicular", pair, base), merge("perpendicular", deltas, base))


def new_ops(before: Leaf | Node, after: Leaf | Node) -> list[str]:
    """The names of the nodes of a merge that an earlier one does not have."""
    assert isinstance(before, Node)
    assert isinstance(after, Node)
    old = {_shape(node) for node in before.ancestors()}
    return sorted(node.op for node in set(after.ancestors()) if _shape(node) not in old)


def _shape(value: Leaf | Node) -> str:
    if isinstance(value, Leaf):
        return str(id(value.tensor))
    return str((value.op, value.parameters, [_shape(source) for source in value.inputs]))


BASE, X, Y = (torch.arange(10.0) + offset for offset in (0.0, 1.0, 2.0))


def merged(name: str, own: dict[str, Any] | None = None, **shared: Any) -> Leaf | Node:
    """A lowered merge of two models, `own` being the first one's parameters."""
    other = {"weight": 1.0} if name.startswith("consensus") else {}
    return lower(name, [Model(X, own or other), Model(Y, other)], BASE, **shared)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (merged("ramplus_tl"), merged("ramplus_tl", r=0.7), ["add", "ram_plus"]),
        (merged("ram"), merged("ramplus_tl"), ["add", "overlap_counts", "ram_plus"]),
        (merged("magmax"), merged("magmax", **{"lambda": 0.5}), ["add", "scale"]),
        (merged("emr"), merged("emr", {"task": True}), ["add", "agreeing", *["magnitude_sum"] * 2, "rescale"]),
        (merged("perpendicular"), merged("perpendicular", alpha=0.5), ["add", "perpendicular"]),
        (merged("add_difference"), merged("add_difference", alpha=0.5), ["add", "scale"]),
        (
            merged("consensus_ta"),
            merged("consensus_ta", {"weight": 1.0, "tall_lambda": 0.7}),
            ["add", "tall_mask", "tall_vote"],
        ),
        (merged("consensus_ta"), merged("consensus_ta", consensus_k=1), ["add", "tall_vote"]),
        (merged("consensus_ties"), merged("consensus_ties", **{"lambda": 0.5}), ["add", "scale"]),
        (merged("consensus_ties"), merged("consensus_ties", normalize=True), ["add", "consensus", "tall_vote"]),
    ],
)
def test_a_changed_parameter_touches_what_depends_on_it(
    before: Leaf | Node, after: Leaf | Node, expected: list[str]
) -> None:
    """Two merges that differ in a parameter share every node that does not depend on it."""
    assert new_ops(before, after) == expected


@pytest.mark.parametrize(
    ("name", "own", "shared", "expected"),
    [
        ("magmax", {"weight": 0.0}, {}, BASE),
        ("magmax", {}, {"lambda": 0.0}, BASE),
        ("emr", {"weight": 0.0}, {}, BASE),
        ("emr", {}, {"lambda": 0.0}, BASE),
        ("consensus_ta", {"weight": 0.0}, {}, BASE),
        ("consensus_ta", {"weight": 1.0}, {"lambda": 0.0}, BASE),
        ("consensus_ties", {"weight": 1.0, "density": 0.0}, {}, BASE),
        ("consensus_ties", {"weight": 1.0}, {"lambda": 0.0}, BASE),
        ("add_difference", {}, {"alpha": 0.0}, BASE),
        ("perpendicular", {}, {"alpha": 0.0}, X),
    ],
)
def test_a_result_that_is_an_input_is_that_input(
    name: str, own: dict[str, Any], shared: dict[str, Any], expected: Tensor
) -> None:
    """Where a merge comes down to one of its inputs, no operation is emitted, so its bytes are copied."""
    result = lower(name, [Model(X, own), Model(Y, own)], BASE, **shared)
    assert isinstance(result, Leaf)
    assert result.tensor is expected


def test_a_factor_of_one_is_the_delta_itself() -> None:
    """The step scale emits nothing at factor 1, and one product otherwise."""
    delta = Model(X, type="delta")
    assert isinstance(lower("scale", [delta], factor=1.0), Leaf)
    assert ops(lower("scale", [delta], factor=0.0)) == ["scale"]


@pytest.mark.parametrize("name", [*ADDING, "nearswap", "add_difference", "perpendicular"])
def test_empty_tensors_lower_to_the_base(name: str) -> None:
    """A tensor without elements is the base's."""
    base, tuned = torch.zeros(0, 4), torch.ones(0, 4)
    own = {"weight": 1.0} if name.startswith("consensus") else {}
    count = 1 if name == "nearswap" else 2
    shared = {"t": 0.1} if name == "nearswap" else {}
    result = lower(name, [Model(tuned.clone(), own) for _ in range(count)], base, **shared)
    assert isinstance(result, Leaf)
    assert result.tensor is base


@pytest.mark.parametrize("name", [*ADDING, "nearswap", "add_difference", "perpendicular"])
def test_a_missing_base_is_named(name: str) -> None:
    """A method that needs a base says so when it has none."""
    own = {"weight": 1.0} if name.startswith("consensus") else {}
    listed = [Model(X, own)] if name == "nearswap" else [Model(X, own), Model(Y, own)]
    with pytest.raises(ValueError, match="base_model"):
        lower(name, listed, None, **({"t": 0.1} if name == "nearswap" else {}))


def test_one_task_at_a_time() -> None:
    """emr refuses two tasks in one step, and says how to have both."""
    with pytest.raises(ValueError, match=r"'task' is true for 2 models.*more steps"):
        lower("emr", [Model(X, {"task": True}), Model(Y, {"task": True})], BASE)
