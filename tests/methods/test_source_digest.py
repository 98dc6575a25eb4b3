"""The digest of a function's source: another one when its results may change, the same when they cannot."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mergeflow.methods.source import captured_values, source_digest

MODULE = """
import math

FACTOR = 2.0

def helper(x):
    return x * FACTOR

def method(x, t=1.0):
    return helper(x) + t
"""


@pytest.fixture
def digest_of(tmp_path: Path) -> Callable[[str], str]:
    """The digest of `method` in a module of some text."""

    def digest(text: str) -> str:
        number = len(list(tmp_path.iterdir()))
        path = tmp_path / f"module_{number}.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location("some_module", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return source_digest(module.method)

    return digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("helper(x) + t", "helper(x) - t"),
        ("x * FACTOR", "x / FACTOR"),
        ("FACTOR = 2.0", "FACTOR = 3.0"),
        ("method(x, t=1.0)", "method(t, x=1.0)"),
    ],
)
def test_what_changes_results_changes_the_digest(digest_of: Callable[[str], str], old: str, new: str) -> None:
    """An edit of the function, of a function it calls, or of a constant that one names."""
    assert old in MODULE
    assert digest_of(MODULE.replace(old, new)) != digest_of(MODULE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    return helper(x) + t", "    # a comment\n    return helper(x)  +  t"),
        ("    return helper(x) + t", '    """A docstring."""\n    return helper(x) + t'),
        ("method(x, t=1.0)", "method(x, t: float = 2.0)"),
        ("import math", "import math\n\nUNUSED = 3\n\ndef other(): return 1"),
    ],
)
def test_what_cannot_change_results_leaves_it(digest_of: Callable[[str], str], old: str, new: str) -> None:
    """Comments, formatting, docstrings, annotations, defaults (they come as arguments), and what it does not use."""
    assert digest_of(MODULE.replace(old, new)) == digest_of(MODULE)


def test_functions_that_call_each_other_end(digest_of: Callable[[str], str]) -> None:
    """A circle of functions is walked once."""
    circle = "def method(x):\n    return other(x)\n\ndef other(x):\n    return method(x) if x else x\n"
    assert digest_of(circle) != digest_of(circle.replace("else x", "else 0"))


def test_a_function_without_source_has_a_digest() -> None:
    """What was typed into a prompt is known by its bytecode."""
    spaces: list[dict[str, Any]] = [{"__name__": "prompt"} for _ in range(3)]
    for space, text in zip(spaces, ("x + 1", "x + 1", "x + 2"), strict=True):
        exec(f"def method(x):\n    return {text}", space)
    one, same, other = (source_digest(space["method"]) for space in spaces)
    assert one == same != other


def test_captured_values_are_found() -> None:
    """A number of an enclosing function counts; a function or a module of it does not."""
    factor = 3

    def helper() -> int:
        return 1

    def method() -> int:
        return factor * helper()

    assert captured_values(method) == ["factor"]
