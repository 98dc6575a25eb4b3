"""docs/numerics.md, made from benchmarks/results/numerics.json (``make docs``: benchmarks/pages.py)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.report import RESULTS, table

SOURCE = RESULTS / "numerics.json"

INTRODUCTION = """\
# Numerics

Made by `make docs` from `benchmarks/results/numerics.json`, which `python -m benchmarks.numerics` writes; do not edit.

How far what is written lies from the exact result, for models in bfloat16. *Exact* is the method's formula on whole
tensors in float64 (`benchmarks/exact`). Errors are in units of **one rounding**: half the distance of bfloat16 numbers
at the exact value, the most that rounding it once can be off, and so what no tool that writes bfloat16 can go below.
(To that unit 2^-22 of the largest input at the element is added, which counts only where inputs cancel to less than
some thousandth.) *Beyond* is the share of elements that are further off than one rounding.

mergeflow computes in float32, with sums and coefficients in float64, and rounds once, when it writes. mergekit 0.1.5
computes most methods in bfloat16 and rounds after every operation. Its largest errors are where inputs cancel, and
where another sign is elected, or another element is kept, than in the exact merge: after rounding, or because equal
magnitudes at a threshold are kept in no stated order (here: those of lower index).

Methods that drop elements by chance draw other numbers in the two tools; each is compared with the exact merge of the
elements that it kept itself. A dash: mergekit does not have the method, or ends in an error (`multislerp`, where three
models leave a tensor as it is in the base).
"""

MODELS = {
    "golden": "Four tiny Llamas (those of the golden tests), whose fine-tunes differ from the base at every element",
    "synthetic": "A Llama 256 wide and fine-tunes that are equal to it at half of the elements",
}

NOT_YET = "\nNothing has been measured yet.\n"


def current_page() -> str:
    """The page as the results give it."""
    return page(json.loads(SOURCE.read_text()) if SOURCE.exists() else [])


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """The whole page; without figures when nothing has been measured."""
    if not rows:
        return INTRODUCTION + NOT_YET
    sections = [_section(name, [row for row in rows if row["models"] == name]) for name in MODELS]
    return "\n".join([INTRODUCTION, *sections])


def _section(models: str, rows: Sequence[Mapping[str, Any]]) -> str:
    head = ["merge", "mergeflow: largest", "mean", "beyond", "mergekit: largest", "mean", "beyond"]
    lines = [[row["merge"], *_figures(row["mergeflow"]), *_figures(row["mergekit"])] for row in rows]
    return f"## {models.capitalize()} models\n\n{MODELS[models]}.\n\n{table(head, lines)}"


def _figures(errors: Mapping[str, float] | None) -> list[str]:
    if errors is None:
        return ["-"] * 3
    beyond = errors["beyond"]
    return [_rounded(errors["largest"]), f"{errors['mean']:.2f}", "0" if beyond == 0 else f"{100 * beyond:.2g} %"]


def _rounded(value: float) -> str:
    """A figure that is never rounded to 1 from above: that would hide what the page is there to show."""
    return f"{value:.0f}" if value >= 10 else f"{value:.4f}" if 1.0 < value < 1.01 else f"{value:.2f}"
