"""What docs/in-memory.md shows works as it stands there."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "in-memory.md").read_text(encoding="utf-8")


def test_the_pages_code_runs(tmp_path: Path) -> None:
    """All of it, one after the other; adding a change to its base gives the model."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "page.py").write_text("\n".join(blocks))
    made = runpy.run_path(str(tmp_path / "page.py"))
    math, chat = made["math"][0].weight, made["weights"][1]
    torch.testing.assert_close(made["merged"], (0.3 * math + 0.7 * chat).detach())
    torch.testing.assert_close(made["again"], math.detach())


def test_every_link_of_the_page_leads_somewhere() -> None:
    """No dead link."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGE)
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
