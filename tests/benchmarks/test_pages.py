"""The generated pages of docs/: made by one command, and never edited by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import pages
from mergeflow.cli.method_page import methods_page
from mergeflow.methods.schema import Method, Parameter
from mergeflow.methods.table import METHODS


@pytest.mark.parametrize("page", pages.PAGES)
def test_the_committed_page_is_the_one_that_would_be_made_now(page: str) -> None:
    """`make docs` was run after the last change to what the page is made from."""
    assert (pages.ROOT / page).read_text() == pages.PAGES[page]()


def test_pages_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing pages are written; those that are current are left as they are."""
    monkeypatch.setattr("benchmarks.pages.ROOT", tmp_path)
    monkeypatch.setattr("benchmarks.pages.PAGES", {"docs/one.md": lambda: "one\n", "docs/two.md": lambda: "two\n"})
    assert pages.write_pages() == ["docs/one.md", "docs/two.md"]
    (tmp_path / "docs" / "two.md").write_text("edited by hand\n")
    assert pages.stale_pages() == ["docs/two.md"]
    assert pages.write_pages() == ["docs/two.md"]
    assert pages.stale_pages() == []


def test_the_page_of_methods_has_all_of_every_method() -> None:
    """Each has a section with formula, paper, parameters and example."""
    text = methods_page(METHODS.values())
    for method in METHODS.values():
        section = text.partition(f"\n## {method.name}\n")[2].partition("\n## ")[0]
        assert method.formula in section
        assert method.paper in section
        assert method.example.strip() in section
        assert all(f"| `{parameter.name}` | " in section for parameter in method.parameters)


def test_a_bar_does_not_end_a_cell() -> None:
    """Absolute values in what a parameter means leave the table whole."""
    method = Method(
        "m", "M", "Summary.", "R = X", (Parameter("p", "float", "shared", 1.0, meaning="bound of |X|"),), lambda *_: 0
    )
    assert "| bound of \\|X\\| |\n" in methods_page([method])
