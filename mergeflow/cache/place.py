"""Where things lie: the cache that a user names, and what is used when nobody says otherwise.

A cache is a folder, or a URL of an object store with a folder of this machine before it (its *local tier*):

    named (--cache, Options.cache)      a folder, or s3://bucket/prefix, gs://..., az://..., file:///...
    else ``$MERGEFLOW_CACHE``           likewise
    else ``./cache`` in a checkout      so that a developer's trials stay with the checkout
    else the user's cache folder

The local tier of a URL is ``$MERGEFLOW_CACHE_LOCAL``, else a folder for that URL in the user's cache folder: one for
each, so that what came from one store is never offered to runs that did not ask for it. A place leaves it open until
the cache is opened, because each worker of a cluster has its own.

What one machine remembers for itself (digests of model files) lies in ``$MERGEFLOW_HOME``, else in the user's cache
folder: never in a checkout, since it holds for all of them.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from mergeflow.errors import CacheError

_PROJECT = "mergeflow"
SCHEMES = ("s3", "gs", "az", "file")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
# Plain names: nothing that a store, a shell or a file system reads as something else.
_SEGMENT = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._=+-]+")


@dataclass(frozen=True, slots=True)
class CachePlace:
    """Where a cache lies. Travels to workers.

    Args:
        local: its folder, existing or not; None, with a URL, for the default of the machine that opens it.
        remote: the URL of a store shared with others, as `checked_url` gives it; None for a folder alone.
    """

    local: Path | None
    remote: str | None = None

    def __str__(self) -> str:
        return self.remote if self.remote is not None else str(self.local)


def as_place(named: CachePlace | Path | str) -> CachePlace:
    """The place that a user names: a folder, or a URL. A folder becomes absolute, starting in the current folder.

    Raises:
        CacheError: a URL that no cache can have.
    """
    if isinstance(named, CachePlace):
        return named if named.local is None else CachePlace(named.local.absolute(), named.remote)
    if isinstance(named, str) and _URL.match(named):
        return CachePlace(None, checked_url(named))
    return CachePlace(Path(named).absolute())


def is_shared(named: CachePlace | Path | str | None) -> bool:
    """Whether a cache, if there is one, lies in a store that others use too."""
    return named is not None and as_place(named).remote is not None


def checked_url(url: str) -> str:
    """`url` itself, without a slash at its end.

    Raises:
        CacheError: another kind of URL, without a bucket, or with parts that name no plain folder of it.
    """
    found = _URL.fullmatch(url)
    scheme, rest = (found[1].lower(), found[2]) if found else ("", url)
    if "@" in rest or "?" in rest:
        # Not quoted: it may hold a password.
        raise CacheError("the URL of a cache has no user, password or query: credentials come from the environment")
    if scheme not in SCHEMES:
        raise CacheError(f"no cache can lie at {url!r}: use a folder, s3://bucket/prefix, gs://... or az://...")
    parts = rest.rstrip("/").split("/")
    if scheme == "file" and parts[0] == "":
        parts = parts[1:]
    if not parts or not all(map(_SEGMENT.fullmatch, parts)):
        needs = "an absolute path" if scheme == "file" else "a bucket, and a prefix of plain names"
        raise CacheError(f"no cache can lie at {url!r}: it needs {needs}, as in s3://bucket/prefix")
    return f"{scheme}://{'/' if scheme == 'file' else ''}{'/'.join(parts)}"


def local_folder(place: CachePlace, environ: Mapping[str, str], cwd: Path) -> Path:
    """The folder of a cache on this machine: the cache itself, or the local tier of a store. It need not exist."""
    if place.local is not None:
        return cwd / place.local
    named = environ.get("MERGEFLOW_CACHE_LOCAL")
    if named:
        return cwd / _expanded(named, environ)
    url = place.remote or ""
    bucket = next(part for part in [*url.partition("://")[2].split("/"), "store"] if part)
    # What was accepted without the secret, or with another, is not offered to runs that have it.
    told_apart = f"{url}\n{environ.get('MERGEFLOW_CACHE_SECRET', '')}"
    name = blake3(told_apart.encode(), derive_key_context="mergeflow 2026-11 local tier of a shared cache").hexdigest()
    return _user_cache(environ) / "shared" / f"{bucket}-{name[:16]}"


def default_place(environ: Mapping[str, str], cwd: Path) -> CachePlace:
    """The cache of a command run in `cwd`: a folder, or the URL that ``$MERGEFLOW_CACHE`` holds.

    Raises:
        CacheError: a URL that no cache can have.
    """
    named = environ.get("MERGEFLOW_CACHE", "")
    return as_place(named) if _URL.match(named) else CachePlace(default_cache(environ, cwd))


def default_cache(environ: Mapping[str, str], cwd: Path) -> Path:
    """The cache folder for a command run in `cwd`. It need not exist.

    Args:
        environ: the environment's variables; an empty one counts as unset, a relative path starts at `cwd`.
    """
    named = environ.get("MERGEFLOW_CACHE")
    if named:
        return cwd / _expanded(named, environ)
    if _is_checkout(cwd):
        return cwd / "cache"
    return _user_cache(environ)


def state_folder(environ: Mapping[str, str], cwd: Path | None = None) -> Path:
    """The folder for what this machine remembers between runs, such as digests of files. It need not exist.

    Args:
        cwd: where a relative ``$MERGEFLOW_HOME`` starts; the current folder when it is None.
    """
    named = environ.get("MERGEFLOW_HOME")
    if named:
        return (cwd or Path.cwd()) / _expanded(named, environ)
    return _user_cache(environ)


def _user_cache(environ: Mapping[str, str]) -> Path:
    # The XDG rules: a relative path in the variable is invalid and ignored.
    named = Path(environ.get("XDG_CACHE_HOME", ""))
    base = named if named.is_absolute() else _home(environ) / ".cache"
    return base / _PROJECT


def _expanded(path: str, environ: Mapping[str, str]) -> Path:
    """`path` with a leading ``~/`` replaced, since a variable set in a file is not expanded by a shell."""
    if path == "~" or path.startswith("~/"):
        return _home(environ) / path[2:]
    return Path(path)


def _home(environ: Mapping[str, str]) -> Path:
    named = environ.get("HOME")
    return Path(named) if named else Path.home()


def _is_checkout(folder: Path) -> bool:
    if not (folder / "cache").is_dir():
        return False
    try:
        settings = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    project = settings.get("project")
    return isinstance(project, dict) and project.get("name") == _PROJECT
