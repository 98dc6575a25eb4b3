"""`mergeflow export`, `verify` and `lineage`: the commands that look at what was made, after the fact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mergeflow.cli.arguments import CacheFolder, Json, Recipe_, Set
from mergeflow.cli.console import print_json
from mergeflow.cli.flags import make_options, read_with
from mergeflow.cli.guard import guarded

Made = Annotated[
    Path, typer.Argument(metavar="OUT", help="An output of mergeflow: its folder, a delta file, or a lock file.")
]


def add_output_commands(app: typer.Typer) -> None:
    """Make the three commands part of `mergeflow`."""
    app.command(epilog="Example: mergeflow export recipe.yaml math_skill ./math_skill.safetensors")(export)
    app.command(epilog="Example: mergeflow verify ./out/final --models ./models")(verify)
    app.command(epilog="Example: mergeflow lineage ./out/final")(lineage)


@guarded
def export(
    recipe: Recipe_,
    step: Annotated[str, typer.Argument(metavar="STEP", help="The step whose result is written.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder; for a delta also a file, OUT.safetensors.")],
    dtype: Annotated[
        str | None, typer.Option(metavar="DTYPE", help="Number format of the weights, such as bfloat16.")
    ] = None,
    max_shard_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="The most bytes in one file, such as 5GB.")
    ] = None,
    set_: Set = None,
    cache: CacheFolder = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.json", help="Write what was done, as JSON.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but warnings and errors.")] = False,
) -> None:
    """Write the result of any step, as a model or as a delta, after the fact.

    What the cache has is read from there, the rest is computed. A step that is a delta (task_vector, sparsify, ...)
    becomes a delta file or a folder with one; everything else the model folder that a run would have made.
    """
    from mergeflow.cli.looking_back import export_and_show

    options = make_options(cache, no_cache=False)
    export_and_show(
        read_with(recipe, set_), step, out, options, _dtype(dtype), _size(max_shard_size), report, quiet=quiet
    )


@guarded
def verify(
    out: Made,
    models: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A folder to look for the inputs in, by their paths or names.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Compute nothing: files and keys only.")] = False,
    cached: Annotated[bool, typer.Option("--cached", help="Believe the cache.")] = False,
    cache: CacheFolder = None,
    as_json: Json = False,
) -> None:
    """Check that an output is what its lock says: its files, the key of every tensor, and every byte, computed anew.

    The cache is not believed. Exit code 0: all is equal; 3: something differs, all of which is listed; 1: OUT is no
    output of mergeflow, or inputs are missing.
    """
    from mergeflow.cli.looking_back import show_verification, verification_json, verify_and_listen

    options = make_options(cache, no_cache=not cached and cache is None)
    found = verify_and_listen(out, options, models, quick=quick, cached=cached, quiet=as_json)
    if as_json:
        print_json(verification_json(found))
    else:
        show_verification(found)
    raise typer.Exit(found.exit_code)


@guarded
def lineage(out: Made, as_json: Json = False) -> None:
    """Print how a model was made, back to the digests of the inputs, from its lock file alone.

    Inputs that mergeflow made are followed to their own inputs.
    """
    from mergeflow.cli.looking_back import lineage_json, show_lineage
    from mergeflow.workflow.lineage import lock_at

    lock = lock_at(out)
    if as_json:
        print_json(lineage_json(lock))
    else:
        show_lineage(out, lock)


def _dtype(named: str | None) -> str | None:
    from mergeflow.dtypes import FLOAT_NAMES
    from mergeflow.recipe.nearest import did_you_mean

    name = None if named is None else named.removeprefix("torch.")
    if name is not None and name not in FLOAT_NAMES:
        raise typer.BadParameter(
            f"--dtype {named!r} is not a number format{did_you_mean(name, FLOAT_NAMES, 'formats')}"
        )
    return name


def _size(text: str | None) -> int | None:
    from mergeflow.recipe.sizes import parse_size

    try:
        return None if text is None else parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(f"--max-shard-size: {error}") from error
