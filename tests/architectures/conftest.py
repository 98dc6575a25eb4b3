"""Two tiny models of each architecture, made once for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import ARCHITECTURES, Made, save


@pytest.fixture(scope="package")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Architecture -> a folder with the models `a` and `b`."""
    folders: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            for seed, model in enumerate("ab"):
                save(ARCHITECTURES[name], folders[name] / model, seed)
        return folders[name]

    return make
