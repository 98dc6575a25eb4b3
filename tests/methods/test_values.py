"""Typed reading of parameters: the right type or a message that names the parameter."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from mergeflow.methods.values import flag, number, numbers, optional_number, real, whole

MIXED: dict[str, object] = {"whole": 3, "share": 0.5, "yes": True, "word": "x", "nan": math.nan, "none": None}


def test_values_keep_their_type() -> None:
    """Each reader gives its own type; integers count as numbers."""
    assert (number(MIXED, "whole"), number(MIXED, "share")) == (3.0, 0.5)
    assert whole(MIXED, "whole") == 3
    assert flag(MIXED, "yes") is True
    assert optional_number(MIXED, "none") is None
    assert optional_number(MIXED, "absent") is None
    assert optional_number(MIXED, "share") == 0.5
    assert numbers({"list": [1, 0.5]}, "list") == (1.0, 0.5)
    assert math.isnan(real(MIXED, "nan"))


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (number, "yes"),
        (number, "word"),
        (number, "nan"),
        (optional_number, "word"),
        (whole, "yes"),
        (whole, "share"),
        (flag, "whole"),
        (numbers, "word"),
        (numbers, "share"),
        (real, "word"),
        (real, "yes"),
    ],
)
def test_a_wrong_type_is_named(read: Callable[[dict[str, object], str], object], name: str) -> None:
    """A value of another type is refused, and the message says which parameter it was."""
    with pytest.raises(ValueError, match=f"^{name} must be"):
        read(MIXED, name)


def test_numbers_of_a_list_are_finite() -> None:
    """One NaN in a list is refused."""
    with pytest.raises(ValueError, match="finite"):
        numbers({"list": [1.0, math.nan]}, "list")
