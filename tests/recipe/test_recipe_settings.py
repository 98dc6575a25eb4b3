"""Values of settings: conversion to a parameter's type, gradients over the layers, filters."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from mergeflow.errors import Position
from mergeflow.recipe.records import Branch, Scalar, Setting
from mergeflow.recipe.settings import Kind, SettingError, convert, evaluate, interpolate

UNTIMED = settings(deadline=None)
PLACE = Position("f", 3, 4)
LAYERS = (0.0, 0.5, 1.0)


def setting(*branches: tuple[Scalar | tuple[Scalar, ...], str | None]) -> Setting:
    return Setting(tuple(Branch(value, name_filter, PLACE) for value, name_filter in branches), PLACE)


class TestConversion:
    @pytest.mark.parametrize(
        ("kind", "value", "expected"),
        [
            ("float", 1, 1.0),
            ("float", 0.5, 0.5),
            ("float", True, 1.0),
            ("float", "1e-3", 0.001),
            ("float", " -.5 ", -0.5),
            ("float", "inf", math.inf),
            ("int", 7, 7),
            ("int", 7.0, 7),
            ("int", True, 1),
            ("int", "7", 7),
            ("int", "7.0", 7),
            ("bool", True, True),
            ("bool", 1, True),
            ("bool", 0.0, False),
            ("bool", "YES", True),
            ("bool", "off", False),
            ("bool", "t", True),
            ("bool", "n", False),
            ("bool", "0", False),
            ("string", "x", "x"),
            ("string", "1", "1"),
        ],
    )
    def test_accepted(self, kind: Kind, value: Scalar, expected: Scalar) -> None:
        """The table of the specification: what each type takes."""
        found = convert(value, kind)
        assert (type(found), found) == (type(expected), expected)

    def test_nan(self) -> None:
        """`nan` is a float's value."""
        found = convert("nan", "float")
        assert isinstance(found, float)
        assert math.isnan(found)

    @pytest.mark.parametrize(
        ("kind", "value", "message"),
        [
            ("float", "x", "'x' is not a number"),
            ("float", "none", "'none' is not a number"),
            ("float", "", "'' is not a number"),
            ("float", 10**400, "is not a number of float64's range"),
            ("int", 2.5, "2.5 is not an integer"),
            ("int", "1e2", "'1e2' is not an integer"),
            ("int", "2.5", "'2.5' is not an integer"),
            ("int", math.inf, "inf is not an integer"),
            ("int", math.nan, "nan is not an integer"),
            ("bool", 0.5, "0.5 is not true or false"),
            ("bool", 2, "2 is not true or false"),
            ("bool", "2", "'2' is not true or false"),
            ("bool", "maybe", "'maybe' is not true or false"),
            ("string", 1, "1 is not a text (in quotes)"),
            ("string", True, "true is not a text (in quotes)"),
            ("int", "9" * 5000, "is not an integer"),
        ],
    )
    def test_refused(self, kind: Kind, value: Scalar, message: str) -> None:
        """The table of the specification: what each type refuses, and how it says so."""
        with pytest.raises(ValueError, match="is not") as caught:
            convert(value, kind)
        assert message in str(caught.value)

    @UNTIMED
    @given(
        st.sampled_from(["float", "int", "bool", "string"]),
        st.booleans()
        | st.integers(-(2**62), 2**62)
        | st.floats(allow_nan=False, min_value=-1e18, max_value=1e18)
        | st.sampled_from(
            ["yes", "No", "ON", "off", "T", "f", "y", "N", "1", "0", "1.0", "2", "true", "FALSE", "", "x"]
        )
        | st.from_regex(r"[+-]?[0-9]{1,6}(\.[0-9]{0,3})?", fullmatch=True)
        | st.from_regex(r"[+-]?[0-9]{1,4}(\.[0-9]{0,3})?[eE][+-]?[0-9]{1,2}", fullmatch=True),
    )
    def test_agrees_with_the_validator_mergekit_uses(self, kind: Kind, value: Scalar) -> None:
        """Conversion accepts, refuses and gives what pydantic's lax mode does, which is mergekit's rule."""
        types: dict[Kind, type] = {"float": float, "int": int, "bool": bool, "string": str}
        adapter: TypeAdapter[Any] = TypeAdapter(types[kind])
        try:
            expected = adapter.validate_python(value)
        except ValidationError:
            with pytest.raises(ValueError, match="is not"):
                convert(value, kind)
            return
        found = convert(value, kind)
        assert (type(found), found) == (type(expected), expected)


class TestGradients:
    @pytest.mark.parametrize(
        ("kind", "values", "expected"),
        [
            ("float", (0, 1), (0.0, 0.5, 1.0)),
            ("float", (0, 0.5, 1), (0.0, 0.5, 1.0)),
            ("float", (1, 0, 1, 0), (1.0, 0.5, 0.0)),
            ("float", (True, False), (1.0, 0.5, 0.0)),
            ("float", ("1", "3"), (1.0, 2.0, 3.0)),
            ("float", (0.7,), (0.7, 0.7, 0.7)),
            ("float", ("inf",), (math.inf, math.inf, math.inf)),
            ("float", (), (None, None, None)),
            ("int", (1, 3), (1, 2, 3)),
            ("int", (4,), (4, 4, 4)),
            ("bool", (True, False), (True, True, False)),
            ("bool", (0, 1), (False, False, True)),
            ("bool", (True, False, True), (True, False, True)),
            ("string", ("1", "3"), ("1", "1", "3")),
            ("string", (), (None, None, None)),
        ],
    )
    def test_over_three_layers(
        self, kind: Kind, values: tuple[Scalar, ...], expected: tuple[Scalar | None, ...]
    ) -> None:
        """Numbers are interpolated, booleans and texts step; the parameter's type decides, not the spelling."""
        found = tuple(evaluate(setting((values, None)), kind, "w", t) for t in LAYERS)
        assert found == expected
        assert [type(item) for item in found] == [type(item) for item in expected]

    def test_an_integer_between_two_is_refused(self) -> None:
        """An integer parameter has no value at 1.5."""
        with pytest.raises(SettingError, match=r"1\.5 is not an integer") as caught:
            evaluate(setting(((1, 2), None)), "int", "w", 0.5)
        assert caught.value.position == PLACE

    def test_every_element_is_converted(self) -> None:
        """A wrong element fails wherever the tensor lies."""
        with pytest.raises(SettingError, match="'x' is not a number"):
            evaluate(setting(((1, "x"), None)), "float", "w", 0.0)

    @UNTIMED
    @given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=6), st.floats(0, 1))
    def test_is_the_formula(self, values: list[float], t: float) -> None:
        """(1 - f) g[i] + f g[j] with s = t (k - 1), i = trunc(s), f = s - i, j = min(k - 1, i + 1)."""
        s = t * (len(values) - 1)
        i = int(s)
        expected = (1 - (s - i)) * values[i] + (s - i) * values[min(len(values) - 1, i + 1)]
        assert interpolate(tuple(values), "float", t) == expected

    @UNTIMED
    @given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6))
    def test_ends_are_the_ends(self, values: list[float]) -> None:
        """The first layer has the first value, the last one the last."""
        assert interpolate(tuple(values), "float", 0.0) == values[0]
        assert interpolate(tuple(values), "float", 1.0) == values[-1]

    @UNTIMED
    @given(st.lists(st.booleans(), min_size=1, max_size=6), st.floats(0, 1))
    def test_booleans_are_never_mixed(self, values: list[bool], t: float) -> None:
        """A stepping gradient gives one of its own elements."""
        assert interpolate(tuple(values), "bool", t) is values[int(t * (len(values) - 1))]


class TestFilters:
    def test_the_first_match_decides(self) -> None:
        """Conditions are asked in order; a filter is a part of the name."""
        chosen = setting((1, "self_attn"), (2, "attn"), (3, None))
        names = ["l.0.self_attn.q", "l.0.attn.q", "l.0.mlp"]
        assert [evaluate(chosen, "int", name, 0.0) for name in names] == [1, 2, 3]

    @pytest.mark.parametrize(
        ("name_filter", "name", "matches"),
        [
            (None, "a", True),
            ("*", "a", True),
            ("", "a", True),
            ("layers.1", "layers.10.w", True),
            ("layers.1.", "layers.10.w", False),
            ("MLP", "l.mlp.w", False),
            ("a*c", "abc", False),
            ("a*c", "xa*cx", True),
            ("a.c", "abc", False),
            ("w", "w", True),
        ],
    )
    def test_rule(self, name_filter: str | None, name: str, matches: bool) -> None:
        """A filter is a plain, case-sensitive part of the name: no glob, no regular expression."""
        assert evaluate(setting((1, name_filter)), "int", name, 0.0) == (1 if matches else None)

    def test_a_match_without_a_value_ends_the_search(self) -> None:
        """The first match decides even when it holds an empty gradient."""
        assert evaluate(setting(((), "x"), (2, None)), "int", "x", 0.0) is None

    def test_values_of_others_are_not_converted(self) -> None:
        """A wrong type behind a filter that does not match goes unnoticed, as in mergekit."""
        assert evaluate(setting(("oops", "mlp"), (2, None)), "int", "attn", 0.0) == 2
        with pytest.raises(SettingError, match="'oops' is not an integer") as caught:
            evaluate(setting(("oops", "mlp"), (2, None)), "int", "mlp", 0.0)
        assert caught.value.position == PLACE

    def test_a_gradient_behind_a_filter(self) -> None:
        """A condition's value may be a gradient."""
        assert evaluate(setting(((0, 1), "mlp")), "float", "mlp", 0.25) == 0.25
