"""Which entries a `cache` command is about: the flags ``--recipe --set --step --older-than --larger-than``."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mergeflow.cache.index import Contents, Listed, ListedKind, Total, index_file, survey, totals_of
from mergeflow.cache.limit import last_used_ns
from mergeflow.cache.open import open_local
from mergeflow.cache.place import as_place
from mergeflow.cache.store import Cache
from mergeflow.cli.console import plain, stderr
from mergeflow.cli.flags import make_options, read_with
from mergeflow.cli.progress import only_warnings
from mergeflow.cli.units import parse_age
from mergeflow.recipe.sizes import parse_size

if TYPE_CHECKING:
    from mergeflow.recipe.records import Recipe
    from mergeflow.workflow.cache_keys import RecipeKeys
    from mergeflow.workflow.options import Options


@dataclass(frozen=True)  # no slots: cached properties live in the instance's dictionary
class Selection:
    """A cache, and the entries of it that are meant.

    Args:
        unused_since: seconds since 1970: only what was not used at that time or later.
        larger_than: bytes: only entries of more.
    """

    options: Options
    recipes: tuple[Recipe, ...]
    steps: tuple[str, ...]
    unused_since: float | None
    larger_than: int | None

    @property
    def is_everything(self) -> bool:
        """Whether no filter is given."""
        return not self.recipes and self.unused_since is None and self.larger_than is None

    @cached_property
    def cache(self) -> Cache:
        """What of the cache lies on this machine."""
        assert self.options.cache is not None  # `select` names one
        return open_local(self.options.cache)

    @property
    def folder(self) -> Path:
        return self.cache.root

    @property
    def index(self) -> Path:
        return index_file(self.options.state, self.folder)

    @cached_property
    def contents(self) -> Contents:
        """What is in the cache, chosen or not."""
        return survey(self.cache.folders, self.index)

    @cached_property
    def keys(self) -> RecipeKeys | None:
        """The keys of the recipes, by step; None when none is given."""
        if not self.recipes:
            return None
        from mergeflow.workflow.cache_keys import recipe_keys  # a third of a second, for those who name a recipe

        return recipe_keys(self.recipes, self.options, only_warnings, self.steps)

    def totals(self) -> dict[ListedKind, Total]:
        """Sums over the entries that are meant."""
        return self.contents.totals() if self.is_everything else totals_of(self.entries())

    def entries(self) -> list[Listed]:
        """The entries that are meant, damaged ones included, by rising key."""
        keys = self.keys.all if self.keys is not None else None  # first: it finds the recipe's mistakes
        return [
            entry
            for entry in self.contents.entries()
            if (keys is None or entry.key in keys)
            and (self.larger_than is None or entry.nbytes > self.larger_than)
            and (self.unused_since is None or last_used(self.cache, entry.key) < self.unused_since)
        ]


def select(
    cache: str | None,
    recipes: list[Path] | None,
    settings: list[str] | None,
    steps: list[str] | None,
    older_than: str | None,
    larger_than: str | None,
    cache_limit: str | None = None,
) -> Selection:
    """What the flags choose.

    Raises:
        typer.BadParameter: a flag that means nothing.
        RecipeError: a recipe cannot be read.
    """
    if not recipes and (steps or settings):
        raise typer.BadParameter(f"{'--step' if steps else '--set'} needs a recipe (--recipe FILE)")
    since = _since(older_than)
    size = _size(larger_than)
    options = make_options(cache, no_cache=False, cache_limit=cache_limit)
    _say_what_is_local(options)
    read = tuple(read_with(recipe, settings) for recipe in recipes or ())
    return Selection(options, read, tuple(steps or ()), since, size)


def last_used(cache: Cache, key: str) -> float:
    """When an entry was last used, in seconds since 1970; 0 when it is gone."""
    return (last_used_ns(cache.folders, key) or 0) / 1e9


def _since(age: str | None) -> float | None:
    try:
        return None if age is None else time.time() - parse_age(age)
    except ValueError as error:
        raise typer.BadParameter(f"--older-than: {error}") from error


def _size(text: str | None) -> int | None:
    try:
        return None if text is None else parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(f"--larger-than: {error}") from error


def _say_what_is_local(options: Options) -> None:
    """Of a shared cache, which part a command is about."""
    assert options.cache is not None  # there is no --no-cache here
    place = as_place(options.cache)
    if place.remote is not None:
        folder = os.fspath(open_local(options.cache).root)
        stderr().print(plain(f"of {place.remote}: the part on this machine, {folder}"))
