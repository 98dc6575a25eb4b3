"""Where things lie when nobody says otherwise.

The cache: ``$MERGEFLOW_CACHE``; else ``./cache`` in a checkout of this project, so that a developer's trials stay with
the checkout; else the user's cache folder. What one machine remembers for itself (digests of model files) lies in
``$MERGEFLOW_HOME``, else in the user's cache folder: never in a checkout, since it holds for all of them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

_PROJECT = "mergeflow"


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
