"""What docs/recipe.md and docs/mergekit.md show and list is what the reader and the command line know."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from recipe_texts import messages, read, step_with

from mergeflow.cli.mergekit_options import MERGEKIT_OPTIONS

DOCS = Path(__file__).parents[2] / "docs"


def blocks() -> list[str]:
    page = (DOCS / "recipe.md").read_text()
    return [textwrap.dedent(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]


def test_every_piece_of_the_page_is_right() -> None:
    """Each piece of YAML is a recipe, or fields of one, without an error."""
    merge = "merge_method: linear\nmodels: [{model: ./a}]\n"
    swept = "merge_method: ties\nbase_model: ./a\nmodels: [{model: ./b, parameters: {weight: '${t}'}}]\n"
    swept = step_with(swept + "parameters: {density: '${density}'}\n")
    before = {"mergeflow:": "", "models:": step_with(merge), "steps:": "mergeflow: 1\n", "sweep:": swept}
    assert len(blocks()) == 6
    for block in blocks():
        start = block.split()[0]
        text = step_with(merge + block) if start in ("parameters:", "tokenizer:") else before[start] + block
        assert messages(read(text)) == [], block


def test_every_option_of_mergekit_is_listed() -> None:
    """Each option that `run` takes from mergekit is in the table of the page."""
    page = (DOCS / "mergekit.md").read_text()
    for row in MERGEKIT_OPTIONS:
        assert all(f"`{flag}`" in page for flag in row.flags.split()), row.name
