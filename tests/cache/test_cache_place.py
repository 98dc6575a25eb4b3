"""Where the cache lies when nobody says otherwise."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from mergeflow.cache.place import (
    CachePlace,
    as_place,
    default_cache,
    default_place,
    is_shared,
    local_folder,
    state_folder,
)
from mergeflow.errors import CacheError

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


# Stores


@pytest.mark.parametrize(
    ("named", "url"),
    [
        ("s3://team/merges", "s3://team/merges"),
        ("S3://team/merges/2026/", "s3://team/merges/2026"),
        ("gs://team", "gs://team"),
        ("az://container/a.b_c-d=e", "az://container/a.b_c-d=e"),
        ("file:///mnt/shared/cache", "file:///mnt/shared/cache"),
    ],
)
def test_a_url_is_a_store_shared_with_others(named: str, url: str) -> None:
    """s3, gs, az and file URLs name a store; the local tier is left open, for each machine to fill in."""
    assert as_place(named) == CachePlace(None, url)
    assert str(as_place(named)) == url
    assert is_shared(named)
    assert pickle.loads(pickle.dumps(as_place(named))) == as_place(named)


@pytest.mark.parametrize(
    "named",
    [
        "ftp://team/merges",
        "http://team/merges",
        "s3://",
        "s3:///merges",
        "s3://team//merges",
        "s3://team/../other",
        "s3://team/./x",
        "s3://team/a b",
        "s3://team/a\nb",
        "s3://team/%2e%2e",
        "file://",
    ],
)
def test_other_urls_are_refused(named: str) -> None:
    """Another scheme, no bucket, or parts that are no plain names: one sentence that quotes the URL."""
    with pytest.raises(CacheError, match="no cache can lie at"):
        as_place(named)


@pytest.mark.parametrize("named", ["s3://ada:pa55word@team/merges", "s3://team/merges?token=pa55word"])
def test_a_password_in_a_url_is_refused_and_not_repeated(named: str) -> None:
    """Credentials do not belong into a URL, which ends up in reports and logs; the message does not show them."""
    with pytest.raises(CacheError, match="credentials come from the environment") as caught:
        as_place(named)
    assert "pa55word" not in str(caught.value)


def test_a_folder_is_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths stay paths, relative ones start in the current folder, and a colon does not make a URL."""
    monkeypatch.chdir(tmp_path)
    assert as_place("cache") == as_place(Path("cache")) == CachePlace(tmp_path / "cache")
    assert as_place("C:/merges") == CachePlace(tmp_path / "C:/merges")
    assert not is_shared("cache")
    assert not is_shared(None)


def test_the_variable_may_hold_a_url(tmp_path: Path) -> None:
    """$MERGEFLOW_CACHE may name a store, too."""
    assert default_place({**HOME, "MERGEFLOW_CACHE": "s3://team/merges"}, tmp_path).remote == "s3://team/merges"
    assert default_place({**HOME, "MERGEFLOW_CACHE": "here"}, tmp_path) == CachePlace(tmp_path / "here")
    assert default_place(HOME, tmp_path) == CachePlace(Path("/home/ada/.cache/mergeflow"))


def test_each_store_and_secret_has_a_local_tier_of_its_own(tmp_path: Path) -> None:
    """What came from one store, or was believed without the secret, is not offered to runs of another."""
    one, other = as_place("s3://team/merges"), as_place("s3://team/others")
    folders = [
        local_folder(place, {**HOME, **secret}, tmp_path)
        for place in (one, other)
        for secret in ({}, {"MERGEFLOW_CACHE_SECRET": "a"}, {"MERGEFLOW_CACHE_SECRET": "b"})
    ]
    assert len(set(folders)) == 6
    assert {folder.parent for folder in folders} == {Path("/home/ada/.cache/mergeflow/shared")}
    assert all(folder.name.startswith("team-") for folder in folders)
    assert local_folder(one, {**HOME, "MERGEFLOW_CACHE_LOCAL": "fast"}, tmp_path) == tmp_path / "fast"
    assert local_folder(CachePlace(Path("/big"), "s3://team/merges"), HOME, tmp_path) == Path("/big")
