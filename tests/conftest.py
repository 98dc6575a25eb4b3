"""What every test gets: a cache and a memory of its own, so that no test sees another's or the user's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mergeflow.methods import registry


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Default folders point into the test's own."""
    monkeypatch.setenv("MERGEFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MERGEFLOW_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("MERGEFLOW_DEBUG", raising=False)


@pytest.fixture(autouse=True)
def own_methods() -> Iterator[None]:
    """What a test declares as a merge method is forgotten at its end."""
    before = dict(registry._declared)
    yield
    registry._declared.clear()
    registry._declared.update(before)
    registry._declaration_of.cache_clear()
