"""What the flags of a command mean together: a recipe with its settings, and how it is run.

A flag that means nothing is a mistake of usage (exit code 2), found before anything is read.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from mergeflow.cache.place import CachePlace
    from mergeflow.recipe.records import Recipe
    from mergeflow.workflow.options import Options


def read_with(recipe: Path, settings: list[str] | None) -> Recipe:
    """The recipe with the values that ``--set NAME=VALUE`` gives its variables."""
    from mergeflow.recipe.read import read_recipe

    overrides = {}
    for setting in settings or []:
        name, equals, value = setting.partition("=")
        if not equals or not name.strip():
            raise typer.BadParameter(f"--set takes NAME=VALUE, not {setting!r}")
        overrides[name.strip()] = value
    return read_recipe(recipe, overrides)


def make_options(
    cache: str | None,
    no_cache: bool,
    *,
    scheduler: str = "threads",
    workers: int | None = None,
    device: str = "auto",
    memory: str | None = None,
    strict: bool = False,
    allow_non_finite: bool = False,
    in_place: bool = False,
    cache_limit: str | None = None,
) -> Options:
    """How a recipe is run, from the flags of that name."""
    from mergeflow.workflow.options import Options, available_cores

    if no_cache and cache is not None:
        raise typer.BadParameter("--cache and --no-cache exclude each other")
    if no_cache and cache_limit is not None:
        raise typer.BadParameter("--cache-limit and --no-cache exclude each other")
    if scheduler not in ("threads", "processes") and "://" not in scheduler:
        raise typer.BadParameter(
            f"--scheduler is threads, processes or an address such as tcp://host:8786, not {scheduler!r}"
        )
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", device):
        raise typer.BadParameter(f"--device is auto, cpu, cuda or cuda:N, not {device!r}")
    tasks = workers or available_cores()
    return Options(
        cache=None if no_cache else cache_place(cache),
        scheduler=scheduler,
        workers=tasks,
        device=device,
        memory=_memory(memory, tasks) if memory is not None else None,
        strict=strict,
        allow_non_finite=allow_non_finite,
        in_place=in_place,
        cache_limit=size_limit(cache_limit),
    )


def size_limit(text: str | None) -> int | None:
    """The bytes of ``--cache-limit``, else those that the environment names, if any."""
    from mergeflow.recipe.sizes import parse_size
    from mergeflow.workflow.options import named_limit

    if text is None:
        return named_limit(os.environ)
    try:
        return parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(f"--cache-limit: {error}") from error


def _memory(text: str, tasks: int) -> int:
    from mergeflow.cli.units import parse_memory, size_text
    from mergeflow.errors import counted
    from mergeflow.graph.memory import least_bytes

    try:
        limit = parse_memory(text)
    except ValueError as error:
        raise typer.BadParameter(f"--memory: {error}") from error
    least = least_bytes(tasks)
    if limit < least:
        needs = f"{counted(tasks, 'task')} at a time take {size_text(least)}"
        raise typer.BadParameter(f"--memory {text} is too little: {needs}; give more, or fewer --workers")
    return limit


def cache_place(named: str | None) -> CachePlace:
    """The cache of ``--cache``, else the one for this folder and environment."""
    from mergeflow.cache.place import as_place, default_place
    from mergeflow.errors import CacheError

    if named is None:
        return default_place(os.environ, Path.cwd())
    try:
        return as_place(named)
    except CacheError as error:
        raise typer.BadParameter(f"--cache: {error}") from error


def cache_folder(named: str | None) -> Path:
    """The folder of that cache on this machine: where a URL is named, its local tier."""
    from mergeflow.cache.place import local_folder

    return local_folder(cache_place(named), os.environ, Path.cwd())
