"""Which place decides a parameter, and filters that decide nothing."""

from __future__ import annotations

import pytest
from recipe_texts import at, read, step_with

from mergeflow.recipe.records import Scalar, Step
from mergeflow.recipe.resolve import lookup, resolve, unmatched_filters
from mergeflow.recipe.settings import SettingError

NAMES = ["embed", "layers.0.attn.q", "layers.0.mlp.up", "layers.1.attn.q", "norm"]


def step(own: str = "{}", shared: str = "{}") -> Step:
    body = (
        f"merge_method: l\nmodels:\n  - {{model: ./a, parameters: {own}}}\n  - {{model: ./b}}\nparameters: {shared}\n"
    )
    return read(step_with(body)).step("only")


# own setting, the step's setting, asked for which input -> value for "layers.0.mlp.up" at t = 0.5
PRECEDENCE = [
    ("{p: 1}", "{p: 2}", 0, 1.0),  # an input's own comes first
    ("{p: 1}", "{p: 2}", 1, 2.0),  # ... for that input alone
    ("{p: 1}", "{p: 2}", None, 2.0),  # a shared parameter never looks at the inputs
    ("{p: 1}", "{}", None, None),
    ("{}", "{p: 2}", 0, 2.0),
    ("{}", "{}", 0, None),  # not set: the default
    ("{p: {filter: attn, value: 1}}", "{p: 2}", 0, 2.0),  # no match falls through
    ("{p: {filter: mlp, value: 1}}", "{p: 2}", 0, 1.0),
    ("{p: []}", "{p: 2}", 0, 2.0),  # so does an empty gradient
    ("{p: {filter: mlp, value: []}}", "{p: 2}", 0, 2.0),
    ("{p: []}", "{p: []}", 0, None),
    ("{p: [0, 1]}", "{p: 2}", 0, 0.5),
    ("{q: 1}", "{p: 2}", 0, 2.0),  # another parameter's setting is not looked at
    ("{p: 0}", "{p: 2}", 0, 0.0),  # zero is a value
    ("{p: false}", "{p: 2}", 0, 0.0),
    ("{p: {filter: '*', value: 1}}", "{p: 2}", 0, 1.0),
]


@pytest.mark.parametrize(("own", "shared", "index", "expected"), PRECEDENCE)
def test_precedence(own: str, shared: str, index: int | None, expected: Scalar | None) -> None:
    """An input's own setting, then the step's; a place without a value for the tensor is passed over."""
    chosen = step(own, shared)
    assert resolve(chosen, index, "p", "float", "layers.0.mlp.up", 0.5) == expected
    assert lookup(chosen, index, "p", "float")("layers.0.mlp.up", 0.5) == expected


def test_a_wrong_type_shows_when_a_tensor_asks() -> None:
    """A value of the wrong type raises with its place, at the tensor it is for and not before."""
    find = lookup(step(shared="{p: oops}"), None, "p", "float")
    with pytest.raises(SettingError, match="'oops' is not a number") as caught:
        find("embed", 0.0)
    assert caught.value.position == at(8, 21)


def test_a_wrong_type_that_is_never_asked_for() -> None:
    """A step's wrong value goes unnoticed where the input has its own, as in mergekit."""
    assert resolve(step("{p: 1}", "{p: oops}"), 0, "p", "float", "embed", 0.0) == 1.0


def test_kinds() -> None:
    """The type asked for decides what a value is."""
    chosen = step(shared="{p: 1}")
    assert [resolve(chosen, None, "p", kind, "embed", 0.0) for kind in ("float", "int", "bool")] == [1.0, 1, True]
    assert isinstance(resolve(chosen, None, "p", "bool", "embed", 0.0), bool)


class TestUnmatchedFilters:
    def test_filters_that_match(self) -> None:
        """A filter that decides for one tensor is fine."""
        chosen = step(
            "{p: [{filter: attn, value: 1}, {filter: mlp, value: 2}, {value: 3}]}", "{q: {filter: '*', value: 1}}"
        )
        assert unmatched_filters(chosen, NAMES) == []

    def test_a_filter_that_matches_nothing(self) -> None:
        """A filter that is part of no tensor's name is a warning, at the filter, with its path."""
        (problem,) = unmatched_filters(step("{p: [{filter: self_attn, value: 1}, {value: 2}]}"), NAMES)
        assert problem.message.startswith("the filter 'self_attn' matches no tensor")
        assert problem.path == "steps.only.models[0].parameters.p[0].filter"
        assert problem.position == at(6, 48)
        assert problem.severity == "warning"

    def test_a_single_condition(self) -> None:
        """The place is right for a condition that stands alone, too; a mergekit file's paths have no step."""
        (problem,) = unmatched_filters(step(shared="{p: {filter: x, value: 1}}"), NAMES, prefix="")
        assert (problem.path, problem.position) == ("parameters.p.filter", at(8, 30))

    def test_a_filter_behind_others(self) -> None:
        """A filter that matches only what those above it took is a warning of its own kind."""
        (problem,) = unmatched_filters(
            step(shared="{p: [{filter: attn, value: 1}, {filter: attn.q, value: 2}]}"), NAMES
        )
        assert problem.message.startswith("the filter 'attn.q' is never reached")
        assert problem.path == "steps.only.parameters.p[1].filter"

    def test_a_catch_all_may_be_idle(self) -> None:
        """A last value for every other tensor is no mistake where there is no other tensor."""
        for last in ("{value: 2}", "{filter: '*', value: 2}"):
            chosen = step(shared=f"{{p: [{{filter: e, value: 1}}, {last}]}}")
            assert unmatched_filters(chosen, ["embed", "layers"]) == []

    def test_no_tensors(self) -> None:
        """Where there is no tensor, every filter is idle, and none fails."""
        assert len(unmatched_filters(step(shared="{p: {filter: x, value: 1}}"), [])) == 1
