"""The generated pages of docs/: ``make docs`` writes them; with `--check`, ``make check`` asks if they are current."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks import numerics_page, report
from mergeflow.cli.method_page import methods_page
from mergeflow.methods.table import METHODS

ROOT = Path(__file__).parents[1]

# Page, below the root -> its text as it should be.
PAGES: Mapping[str, Callable[[], str]] = {
    "docs/performance.md": report.current_page,
    "docs/numerics.md": numerics_page.current_page,
    "docs/methods.md": lambda: methods_page(METHODS.values()),
}


def stale_pages() -> list[str]:
    """The pages that are missing, or are not what they would be if they were made now."""
    return [page for page, text in PAGES.items() if not _is(ROOT / page, text())]


def write_pages() -> list[str]:
    """Write the pages that are stale; which those were."""
    stale = stale_pages()
    for page in stale:
        (ROOT / page).parent.mkdir(exist_ok=True)
        (ROOT / page).write_text(PAGES[page]())
    return stale


def _is(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a page is out of date")
    if not parser.parse_args().check:
        print("\n".join(write_pages()) or "all pages are current")
    elif stale := stale_pages():
        raise SystemExit(f"{', '.join(stale)} out of date: run `make docs`")


if __name__ == "__main__":
    main()
