"""A folder to type commands in: small models a, b and c, and `deep` with one layer more."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_checkpoints import llama

from mergeflow.models import digests


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
