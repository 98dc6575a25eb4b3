"""`mergeflow cache`: the commands that look after the cache."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mergeflow.cli.arguments import CacheFolder, CacheLimit, Json, Set
from mergeflow.cli.guard import guarded

if TYPE_CHECKING:
    from mergeflow.cli.cache_selection import Selection

cache_app = typer.Typer(
    no_args_is_help=True,
    help="Look into the cache, check it, keep it small, empty it. With a shared cache (--cache URL): its part on this "
    "machine.",
)

Recipes = Annotated[
    list[Path] | None,
    typer.Option("--recipe", metavar="FILE", help="Only what this recipe needs. May be given several times."),
]
Steps = Annotated[
    list[str] | None, typer.Option("--step", metavar="NAME", help="Only this step of the recipe. Several times, too.")
]
OlderThan = Annotated[
    str | None, typer.Option("--older-than", metavar="AGE", help="Only what was not used for so long: 7d, 12h, 2w.")
]
LargerThan = Annotated[
    str | None, typer.Option("--larger-than", metavar="SIZE", help="Only entries of more bytes than that: 100MB.")
]


@cache_app.command("ls", epilog="Example: mergeflow cache ls --recipe recipe.yaml --step skills --larger-than 1MB")
@guarded
def cache_ls(
    recipe: Recipes = None,
    set_: Set = None,
    step: Steps = None,
    older_than: OlderThan = None,
    larger_than: LargerThan = None,
    sort: Annotated[str, typer.Option(help="used (latest first), size (largest first) or key.")] = "used",
    cache: CacheFolder = None,
    as_json: Json = False,
) -> None:
    """List entries: key, kind, operation, size, last use, and the pins that keep them."""
    from mergeflow.cli.caching import list_entries

    if sort not in ("used", "size", "key"):
        raise typer.BadParameter(f"--sort is used, size or key, not {sort!r}")
    list_entries(_selection(cache, recipe, set_, step, older_than, larger_than), sort, as_json=as_json)


@cache_app.command("du", epilog="Example: mergeflow cache du --recipe recipe.yaml")
@guarded
def cache_du(
    recipe: Recipes = None,
    set_: Set = None,
    step: Steps = None,
    older_than: OlderThan = None,
    larger_than: LargerThan = None,
    cache_limit: CacheLimit = None,
    cache: CacheFolder = None,
    as_json: Json = False,
) -> None:
    """Say how much room the cache takes, per kind and (with --recipe) per step, and what its limit is."""
    from mergeflow.cli.caching import show_usage

    show_usage(_selection(cache, recipe, set_, step, older_than, larger_than, cache_limit), as_json=as_json)


@cache_app.command("verify", epilog="Example: mergeflow cache verify --older-than 30d --remove")
@guarded
def cache_verify(
    recipe: Recipes = None,
    set_: Set = None,
    step: Steps = None,
    older_than: OlderThan = None,
    larger_than: LargerThan = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove what is damaged.")] = False,
    cache: CacheFolder = None,
    as_json: Json = False,
) -> None:
    """Read every byte of every entry, and list what is damaged. Exit code 3 when something damaged is left.

    Runs check what they read, and compute again what is damaged: this is for entries that nobody has read for long.
    """
    from mergeflow.cli.caching import verify_entries

    selection = _selection(cache, recipe, set_, step, older_than, larger_than)
    raise typer.Exit(verify_entries(selection, remove=remove, as_json=as_json))


@cache_app.command("gc", epilog="Example: mergeflow cache gc --older-than 30d --keep-recipe recipe.yaml --dry-run")
@guarded
def cache_gc(
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="AGE", help="Remove what was not used for so long: 30d.")
    ] = None,
    keep_recipe: Annotated[
        list[Path] | None,
        typer.Option("--keep-recipe", metavar="FILE", help="Remove what this recipe does not need. Several keep all."),
    ] = None,
    set_: Set = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing; say what would be.")] = False,
    cache_limit: CacheLimit = None,
    cache: CacheFolder = None,
    as_json: Json = False,
) -> None:
    """Remove what is damaged or left behind by killed runs, then what was used least while the limit is exceeded.

    With --older-than or --keep-recipe also what nobody wants any more; with both, what is old and not needed. What a
    run that is under way or a pin needs stays.
    """
    from mergeflow.cli.caching import collect_garbage

    selection = _selection(cache, keep_recipe, set_, None, older_than, None, cache_limit)
    collect_garbage(selection, dry_run=dry_run, as_json=as_json)


@cache_app.command("pin", epilog="Example: mergeflow cache pin --recipe recipe.yaml --step skills --name baseline")
@guarded
def cache_pin(
    keys: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY]...", help="Keys, as `cache ls` shows them.")
    ] = None,
    recipe: Recipes = None,
    set_: Set = None,
    step: Steps = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the pin (default: of the recipe and its steps).")
    ] = None,
    cache: CacheFolder = None,
    as_json: Json = False,
) -> None:
    """Keep entries, those of a recipe or single ones, whatever the limit; without arguments list the pins.

    A pin holds for entries that are there and for those that the recipe will write.
    """
    from mergeflow.cli.pinning import list_pins, pin_keys, pin_recipes

    if keys and recipe:
        raise typer.BadParameter("KEYs and --recipe exclude each other")
    selection = _selection(cache, recipe, set_, step)
    if recipe:
        pin_recipes(selection, name)
    elif keys:
        pin_keys(selection, keys, name)
    elif name is not None:
        raise typer.BadParameter("--name needs KEYs or --recipe: what shall be pinned?")
    else:
        list_pins(selection, as_json=as_json)


@cache_app.command("unpin", epilog="Example: mergeflow cache unpin baseline")
@guarded
def cache_unpin(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME|KEY...", help="Pins, as `cache pin` lists them, or keys.")
    ],
    cache: CacheFolder = None,
) -> None:
    """Take pins away, or keys out of all pins. The entries stay until the limit, `gc` or `clear` removes them."""
    from mergeflow.cli.pinning import unpin

    unpin(_selection(cache), names)


@cache_app.command("clear", epilog="Example: mergeflow cache clear --recipe recipe.yaml --step skills --yes")
@guarded
def cache_clear(
    recipe: Recipes = None,
    set_: Set = None,
    step: Steps = None,
    older_than: OlderThan = None,
    larger_than: LargerThan = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also what pins keep, and what a run that is under way needs.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    cache: CacheFolder = None,
) -> None:
    """Remove entries: everything, or what the filters choose. Outputs stay; the next runs compute again.

    What is pinned stays. Refused (exit code 1) while a run that is under way needs some of it.
    """
    from mergeflow.cli.caching import clear_entries

    clear_entries(_selection(cache, recipe, set_, step, older_than, larger_than), force=force, ask=not yes)


def _selection(
    cache: str | None,
    recipe: list[Path] | None = None,
    settings: list[str] | None = None,
    step: list[str] | None = None,
    older_than: str | None = None,
    larger_than: str | None = None,
    cache_limit: str | None = None,
) -> Selection:
    """What the flags choose; a mistake in them is found before anything is looked at."""
    from mergeflow.cli.cache_selection import select

    return select(cache, recipe, settings, step, older_than, larger_than, cache_limit)
