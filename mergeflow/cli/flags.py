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
    cache: Path | None,
    no_cache: bool,
    *,
    scheduler: str = "threads",
    workers: int | None = None,
    device: str = "auto",
    memory: str | None = None,
    strict: bool = False,
    allow_non_finite: bool = False,
) -> Options:
    """How a recipe is run, from the flags of that name."""
    from mergeflow.workflow.options import Options, available_cores

    if no_cache and cache is not None:
        raise typer.BadParameter("--cache and --no-cache exclude each other")
    if scheduler not in ("threads", "processes") and "://" not in scheduler:
        raise typer.BadParameter(
            f"--scheduler is threads, processes or an address such as tcp://host:8786, not {scheduler!r}"
        )
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", device):
        raise typer.BadParameter(f"--device is auto, cpu, cuda or cuda:N, not {device!r}")
    tasks = workers or available_cores()
    return Options(
        cache=None if no_cache else cache_folder(cache),
        scheduler=scheduler,
        workers=tasks,
        device=device,
        memory=_memory(memory, tasks) if memory is not None else None,
        strict=strict,
        allow_non_finite=allow_non_finite,
    )


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


def cache_folder(named: Path | None) -> Path:
    """The folder of ``--cache``, else the one for this folder and environment."""
    from mergeflow.cache.place import default_cache

    return named if named is not None else default_cache(os.environ, Path.cwd())
