"""Where the last run of a recipe leaves the descriptions of its steps, for the next plan to say what changed.

One small JSON file for each recipe file and output, in this machine's state folder. It only explains, so a damaged or
missing one is the same as none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import blake3

from mergeflow.graph.history import StepDescription
from mergeflow.recipe.records import Recipe


def read_history(state: Path, recipe: Recipe) -> dict[str, StepDescription]:
    """The steps of the last run of this recipe file; empty when there was none."""
    try:
        steps = json.loads(_file(state, recipe).read_text(encoding="utf-8"))
        return {name: StepDescription(**entry) for name, entry in steps.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def write_history(state: Path, recipe: Recipe, steps: Mapping[str, StepDescription]) -> None:
    """Remember the steps of a run that succeeded. A state folder that cannot be written is no reason to fail."""
    path = _file(state, recipe)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps({name: asdict(step) for name, step in steps.items()}), encoding="utf-8")
        draft.replace(path)
    except OSError:
        return


def _file(state: Path, recipe: Recipe) -> Path:
    name = blake3.blake3(os.fsencode(os.path.abspath(recipe.file))).hexdigest(16)
    return state / "runs" / f"{name}.json"
