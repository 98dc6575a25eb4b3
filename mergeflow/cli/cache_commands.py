"""`mergeflow cache`: the commands that look after the cache."""

from __future__ import annotations

from typing import Annotated

import typer

from mergeflow.cli.arguments import CacheFolder, Json
from mergeflow.cli.flags import cache_folder
from mergeflow.cli.guard import guarded

cache_app = typer.Typer(no_args_is_help=True, help="Look into the cache, and empty it.")


@cache_app.command("ls")
@guarded
def cache_ls(cache: CacheFolder = None, as_json: Json = False) -> None:
    """List what is in the cache: key, kind, operation, size."""
    from mergeflow.cli.caching import list_entries

    list_entries(cache_folder(cache), as_json=as_json)


@cache_app.command("du")
@guarded
def cache_du(cache: CacheFolder = None, as_json: Json = False) -> None:
    """Say how much room the cache takes."""
    from mergeflow.cli.caching import show_usage

    show_usage(cache_folder(cache), as_json=as_json)


@cache_app.command("clear")
@guarded
def cache_clear(
    cache: CacheFolder = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove everything from the cache. Outputs stay; the next runs compute again."""
    from mergeflow.cli.caching import clear_entries

    clear_entries(cache_folder(cache), ask=not yes)
