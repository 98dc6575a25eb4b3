"""Where the cache lies when nobody says otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergeflow.cache.place import default_cache, state_folder

HOME = {"HOME": "/home/ada"}


def checkout(folder: Path, name: str = "mergeflow") -> Path:
    (folder / "cache").mkdir()
    (folder / "pyproject.toml").write_text(f'[project]\nname = "{name}"\n')
    return folder


def test_the_variable_comes_first(tmp_path: Path) -> None:
    """$MERGEFLOW_CACHE names the cache, even in a checkout; relative to the current folder, with ~ for home."""
    checkout(tmp_path)
    assert default_cache({**HOME, "MERGEFLOW_CACHE": "/big/disk"}, tmp_path) == Path("/big/disk")
    assert default_cache({**HOME, "MERGEFLOW_CACHE": "here"}, tmp_path) == tmp_path / "here"
    assert default_cache({**HOME, "MERGEFLOW_CACHE": "~/merges"}, tmp_path) == Path("/home/ada/merges")


def test_a_checkout_has_its_own(tmp_path: Path) -> None:
    """In a checkout of the project the cache is its cache folder; an empty variable counts as unset."""
    checkout(tmp_path)
    assert default_cache(HOME, tmp_path) == tmp_path / "cache"
    assert default_cache({**HOME, "MERGEFLOW_CACHE": ""}, tmp_path) == tmp_path / "cache"


def test_another_project_is_no_checkout(tmp_path: Path) -> None:
    """Another project's folder that happens to have a cache folder is left alone."""
    checkout(tmp_path, name="other")
    assert default_cache(HOME, tmp_path) == Path("/home/ada/.cache/mergeflow")


@pytest.mark.parametrize("text", ["not toml [", "project = 3", "", "\udcff"])
def test_an_odd_pyproject_is_no_checkout(tmp_path: Path, text: str) -> None:
    """A pyproject.toml that cannot be read or has no name is no reason to fail."""
    checkout(tmp_path)
    (tmp_path / "pyproject.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert default_cache(HOME, tmp_path) == Path("/home/ada/.cache/mergeflow")


def test_a_checkout_without_cache_folder_uses_the_users(tmp_path: Path) -> None:
    """An installed project without the folder (a source archive, say) uses the user's cache."""
    checkout(tmp_path)
    (tmp_path / "cache").rmdir()
    assert default_cache(HOME, tmp_path) == Path("/home/ada/.cache/mergeflow")


def test_the_users_cache_follows_xdg(tmp_path: Path) -> None:
    """$XDG_CACHE_HOME moves the user's cache and state; a relative one is invalid and ignored."""
    assert default_cache({**HOME, "XDG_CACHE_HOME": "/var/ada"}, tmp_path) == Path("/var/ada/mergeflow")
    assert default_cache({**HOME, "XDG_CACHE_HOME": "var"}, tmp_path) == Path("/home/ada/.cache/mergeflow")
    assert state_folder({**HOME, "XDG_CACHE_HOME": "/var/ada"}) == Path("/var/ada/mergeflow")


def test_state_is_the_machines_not_the_checkouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine remembers lies in the user's folder or $MERGEFLOW_HOME, never in a checkout."""
    monkeypatch.chdir(checkout(tmp_path))
    assert state_folder(HOME) == Path("/home/ada/.cache/mergeflow")
    assert state_folder({**HOME, "MERGEFLOW_HOME": "/srv/mergeflow"}) == Path("/srv/mergeflow")
    assert state_folder({**HOME, "MERGEFLOW_HOME": "state"}) == tmp_path / "state"
    assert state_folder({**HOME, "MERGEFLOW_CACHE": "/big/disk"}) == Path("/home/ada/.cache/mergeflow")
