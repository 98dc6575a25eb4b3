from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from mergeflow.models.names import in_natural_order


def test_numbers_in_names_sort_as_numbers() -> None:
    """Layer 2 comes before layer 10."""
    names = ["model.layers.10.w", "model.layers.2.w", "model.embed", "model.layers.2.b"]
    assert in_natural_order(names) == ["model.embed", "model.layers.2.b", "model.layers.2.w", "model.layers.10.w"]


@settings(deadline=None)
@given(st.lists(st.text(alphabet="ab.019", max_size=12), unique=True), st.randoms(use_true_random=False))
def test_the_order_does_not_depend_on_the_order_given(names: list[str], shuffler: random.Random) -> None:
    """Any permutation of distinct names sorts to the same list, names such as 01 and 1 included."""
    shuffled = list(names)
    shuffler.shuffle(shuffled)
    assert in_natural_order(shuffled) == in_natural_order(names)


def test_a_number_of_any_length_is_sorted() -> None:
    """Thousands of digits in a name are no error."""
    assert in_natural_order(["x.2", "x." + "9" * 9999]) == ["x.2", "x." + "9" * 9999]
