"""A folder to type commands in: small models a, b and c, `deep` with one layer more, and an earlier output."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from tiny_checkpoints import llama

from mergeflow.models import digests

# The hub of the tests of models/ serves these too.
sys.path.append(str(Path(__file__).parents[1] / "models"))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that no test changes."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate("abc"):
        llama(folder / name, seed)
    llama(folder / "deep", 9, layers=3)
    return folder


@pytest.fixture
def workplace(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with links to the models."""
    # Files as young as a test's are hashed, but not remembered; a test of what a second run reads wants them to be.
    monkeypatch.setattr(digests, "FINE_TICK_NS", 0)
    monkeypatch.setattr(digests, "COARSE_TICK_NS", 0)
    monkeypatch.chdir(tmp_path)
    for model in models.iterdir():
        (tmp_path / model.name).symlink_to(model)
    return tmp_path


@pytest.fixture(scope="session")
def earlier_output(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Path:
    """What a run wrote before."""
    import mergeflow

    folder = tmp_path_factory.mktemp("earlier")
    recipe = folder / "recipe.yaml"
    recipe.write_text(f"merge_method: passthrough\nmodels: [{{model: {models / 'a'}}}]\n")
    options = mergeflow.Options(cache=None, state=folder / "state")
    mergeflow.run(recipe, folder / "out", options=options)
    return folder / "out"


@pytest.fixture
def out(workplace: Path, earlier_output: Path) -> Path:
    """The earlier output, at the place where the next one is to go."""
    shutil.copytree(earlier_output, workplace / "out")
    return workplace / "out"
