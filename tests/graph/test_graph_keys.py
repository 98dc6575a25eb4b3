"""Keys: what enters them, what does not, and that they stay what they are."""

from __future__ import annotations

import math

import pytest

from mergeflow.graph.keys import canonical, combined_key, node_key


def test_a_key_stays_what_it_is() -> None:
    """The key of a given node never changes: caches made by earlier versions are found again."""
    key = node_key("trim", 1, canonical({"k": 3, "flag": True, "w": 0.1}), "float32", ["a" * 64, "b" * 64])
    assert key == "c703ae1dfa006334c187aa0124dd2e5c2be03ac2a4624f62783065e83fd19249"


def test_a_combined_key_stays_what_it_is() -> None:
    """The key of several values never changes either."""
    assert combined_key(["a", "b"]) == "a06f6ed3058131ad6640cf4546b9a0a954332470490aa781b66eb90eb73e7d51"


@pytest.mark.parametrize(
    "other",
    [
        ("add", 1, {"k": 3}, "float32", ["a", "b"]),
        ("trim", 2, {"k": 3}, "float32", ["a", "b"]),
        ("trim", 1, {"k": 4}, "float32", ["a", "b"]),
        ("trim", 1, {"j": 3}, "float32", ["a", "b"]),
        ("trim", 1, {"k": 3}, "float64", ["a", "b"]),
        ("trim", 1, {"k": 3}, None, ["a", "b"]),
        ("trim", 1, {"k": 3}, "float32", ["b", "a"]),
        ("trim", 1, {"k": 3}, "float32", ["a"]),
        ("trim", 1, {"k": 3}, "float32", ["ab"]),
    ],
)
def test_everything_that_changes_a_value_changes_its_key(
    other: tuple[str, int, dict[str, int], str | None, list[str]],
) -> None:
    """Operation, version, parameters, dtype and inputs in their order each change the key."""
    op, version, parameters, dtype, inputs = other
    changed = node_key(op, version, canonical(parameters), dtype, inputs)
    assert node_key("trim", 1, canonical({"k": 3}), "float32", ["a", "b"]) != changed


def test_the_order_of_parameters_does_not_matter() -> None:
    """A mapping is a mapping, however it was written down."""
    assert canonical({"a": 1, "b": 2}) == canonical({"b": 2, "a": 1})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_parameter_may_be_infinite_or_nan(value: float) -> None:
    """JSON has no word for them, and a key must have one text."""
    with pytest.raises(ValueError, match="JSON"):
        canonical({"t": value})


def test_neighbouring_floats_have_different_texts() -> None:
    """The shortest round-trip form tells any two floats apart."""
    assert canonical(0.1) != canonical(math.nextafter(0.1, 1.0))
