"""The shapes a parameter's value may have, and those it may not."""

from __future__ import annotations

import pytest
from recipe_texts import at, marked, messages, places, read, step_with

from mergeflow.recipe.records import Branch, Setting

BODY = "merge_method: l\nmodels: [{{model: ./a}}]\nparameters:\n  p: {value}\n"


def setting(value: str) -> Setting:
    recipe = read(step_with(BODY.format(value=value)))
    assert recipe.problems == ()
    return recipe.step("only").parameters["p"]


def shape(value: str) -> list[tuple[object, str | None]]:
    return [(branch.value, branch.filter) for branch in setting(value).branches]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0.5", [(0.5, None)]),
        ("1e-5", [("1e-5", None)]),
        ("yes", [(True, None)]),
        ("'yes'", [("yes", None)]),
        ("text", [("text", None)]),
        ("[0, 0.5, true, x]", [((0, 0.5, True, "x"), None)]),
        ("[]", [((), None)]),
        ("{value: 1}", [(1, None)]),
        ("{value: 1, filter: mlp}", [(1, "mlp")]),
        ("{value: 1, filter: }", [(1, None)]),
        ("{value: 1, filter: ''}", [(1, "")]),
        ("{value: 1, filter: 3}", [(1, "3")]),
        ("{value: [], filter: x}", [((), "x")]),
        (
            "[{value: [0, 1], filter: mlp}, {filter: attn, value: 2}, {value: 3}]",
            [((0, 1), "mlp"), (2, "attn"), (3, None)],
        ),
    ],
)
def test_accepted(value: str, expected: list[tuple[object, str | None]]) -> None:
    """A scalar, a gradient, one condition or a list of conditions; values keep the type YAML gives them."""
    found = shape(value)
    assert found == expected
    assert [type(item) for item, _ in found] == [type(item) for item, _ in expected]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("▶", "no value: a parameter is a value, a list of values (a gradient), or {value, filter} mappings"),
        ("▶null", "no value"),
        ("[1, ▶null]", "no value"),
        ("[1, ▶[2]]", "a list inside a list"),
        ("[1, ▶{value: 2}]", "plain values and conditions cannot be mixed"),
        ("▶{filter: x}", "a condition needs a 'value'"),
        ("▶{}", "a condition needs a 'value'"),
        ("▶{a: b}", "a condition needs a 'value'"),
        ("▶{vaule: 1}", "did you mean it by 'vaule'?"),
        ("[{value: 1, filter: x}, ▶{filter: y}]", "a condition needs a 'value'"),
        ("▶{value: null}", "no value"),
        ("{value: ▶{value: 1}}", "a mapping where a value is expected"),
        ("{value: [▶[1]]}", "a list inside a list"),
        ("{value: 1, filter: ▶[x]}", "expected a text, found a list"),
        ("{value: 1, ▶fliter: x}", "did you mean 'filter'?"),
    ],
)
def test_rejected(value: str, message: str) -> None:
    """Anything else is one error at its place, with the rule."""
    template = "merge_method: l\nmodels: [{{model: ./a}}]\nparameters:\n  p: {value}\n  q: 1\n"
    mixed = value == "[1, ▶{value: 2}]"
    text, expected = marked(step_with(template.format(value="[▶1, {value: 2}]" if mixed else value)))
    recipe = read(text)
    assert len(recipe.problems) == 1, recipe.problems
    assert message in recipe.problems[0].message
    assert recipe.problems[0].path.startswith("steps.only.parameters.p")
    if value != "▶":
        assert places(recipe) == expected
    assert "q" in recipe.step("only").parameters


def test_places() -> None:
    """A setting, and each of its branches, knows where its value stands."""
    found = setting("[{filter: x, value: 1}, {value: [2, 3]}]")
    assert found == Setting((Branch(1, "x", at(7, 30)), Branch((2, 3), None, at(7, 42))), at(7, 10))


@pytest.mark.parametrize("catch_all", ["", ", filter: '*'", ", filter: ''", ", filter: "])
def test_a_condition_below_a_catch_all(catch_all: str) -> None:
    """A condition that stands below one for every tensor never decides: a warning."""
    text, expected = marked(step_with(BODY.format(value=f"[{{value: ▶1{catch_all}}}, {{value: 2, filter: x}}]")))
    recipe = read(text)
    assert messages(recipe) == []
    assert messages(recipe, "warning") == [
        "the filter 'x' is never reached: this value is for every tensor, and the first match decides"
    ]
    assert places(recipe) == expected
