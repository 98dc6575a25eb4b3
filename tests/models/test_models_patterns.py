"""Regular expressions of strangers: what is read means what it means to Python, in time that no pattern can stretch."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeflow.models.patterns import parse_pattern


@settings(max_examples=300, deadline=None)
@given(pattern=st.text("ab.*+?|()[]^$\\d{}2,1-", max_size=9), text=st.text("ab1.", max_size=4))
def test_what_is_read_means_what_it_means_to_python(pattern: str, text: str) -> None:
    """A pattern is refused, or it is one of Python's, and matches the same texts."""
    try:
        found = parse_pattern(pattern)
    except ValueError:
        return
    assert found.matches(text) == bool(re.fullmatch(pattern, text))


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*b", "(a*)*c", "(.*.*)*x", "(a{1,30}){1,30}b"])
def test_no_pattern_takes_long(pattern: str) -> None:
    """Patterns over which a backtracking matcher would sit for years are answered at once."""
    assert not parse_pattern(pattern).matches("a" * 200 + "!")


@pytest.mark.parametrize(
    "pattern",
    [r"(a)\1", "a(?=b)", "(?i)a", "(?P<x>a)", "a**", "[b-a]", "(", ")", "[", "{", "a{2,1}", "*a", "\\", "^*", "x" * 2000,
     "((a{99}){99}){99}", "(" * 40 + ")" * 40, r"\bq"],
)  # fmt: skip
def test_what_is_not_read_is_refused(pattern: str) -> None:
    """Broken patterns, and those that need more than this matcher has, are refused with a reason."""
    with pytest.raises(ValueError, match=r"."):
        parse_pattern(pattern)
