"""`mergeflow`: the commands, their flags and what they are for.

Commands import what they need when they run, so that `validate` and `plan` start in a fraction of a second.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mergeflow.cli.arguments import CacheFolder, CacheLimit, Json, Out, Recipe_, Set
from mergeflow.cli.cache_commands import cache_app
from mergeflow.cli.console import print_json, print_text
from mergeflow.cli.flags import make_options, read_with
from mergeflow.cli.guard import guarded
from mergeflow.cli.mergekit_options import PANEL, RunCommand, with_mergekit_settings
from mergeflow.cli.output_commands import add_output_commands

app = typer.Typer(
    help="Merge language models by recipes. Change one number, pay only for the tensors that change.",
    epilog="Start with: mergeflow validate RECIPE, mergeflow plan RECIPE, mergeflow run RECIPE OUT.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cache_app, name="cache")
add_output_commands(app)

NoCache = Annotated[bool, typer.Option("--no-cache", help="Neither read nor write a cache.")]
Strict = Annotated[bool, typer.Option("--strict", help="Warnings about the recipe are errors.")]
Memory = Annotated[
    str | None,
    typer.Option("--memory", metavar="SIZE", help="Memory for buffers, all threads together, such as 512MB."),
]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Tasks at a time (default: one per core).")]


@app.command(cls=RunCommand, epilog="Example: mergeflow run workflows/demo.yaml ./out --set density=0.4")
@guarded
def run(
    recipe: Recipe_,
    out: Out = None,
    set_: Set = None,
    cache: CacheFolder = None,
    no_cache: NoCache = False,
    cache_limit: CacheLimit = None,
    scheduler: Annotated[
        str, typer.Option(help="threads, processes, or the address of a Dask scheduler (tcp://host:8786).")
    ] = "threads",
    workers: Workers = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    memory: Memory = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.json", help="Write what the run did, as JSON.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but warnings and errors.")] = False,
    strict: Strict = False,
    allow_nonfinite: Annotated[
        bool, typer.Option("--allow-nonfinite", help="New NaN and infinities are warnings instead of errors.")
    ] = False,
    in_place: Annotated[
        bool,
        typer.Option(
            "--in-place",
            help="Write what changes over OUT's shards, without a copy. Survives a crash, but a program that loads OUT "
            "meanwhile reads a mixture.",
        ),
    ] = False,
    out_shard_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="The most bytes in one file, such as 5B or 5GB.", rich_help_panel=PANEL),
    ] = None,
    random_seed: Annotated[
        int | None, typer.Option(help="The seed, in place of the recipe's.", rich_help_panel=PANEL)
    ] = None,
) -> None:
    """Make the models a recipe describes.

    With --set NAME=VALUE,VALUE (or a recipe's `sweep`) every combination of the values is run, each into a folder of
    its own below OUT, and what they have in common is done once.

    A second run computes only what has changed. A run that was interrupted goes on where it was. What is in the
    output's folder stays as it is until the new model is complete.
    """
    from mergeflow.cli.merging import merge

    options = make_options(
        cache,
        no_cache,
        scheduler=scheduler,
        workers=workers,
        device=device,
        memory=memory,
        strict=strict,
        allow_non_finite=allow_nonfinite,
        in_place=in_place,
        cache_limit=cache_limit,
    )
    settled = with_mergekit_settings(read_with(recipe, set_), out_shard_size, random_seed)
    merge(settled, out, options, report, quiet=quiet)


@app.command(epilog="Example: mergeflow plan workflows/demo.yaml --set t=0.3")
@guarded
def plan(
    recipe: Recipe_,
    out: Out = None,
    set_: Set = None,
    cache: CacheFolder = None,
    no_cache: NoCache = False,
    workers: Workers = None,
    memory: Memory = None,
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Show what a run would do: per step what is computed and why, what is known, bytes, peak memory.

    Reads headers, the cache's names and the output's lock file; no weights. Of a sweep, a row per candidate, given that
    those before it have run.
    """
    from mergeflow.cli.console import stdout
    from mergeflow.cli.progress import only_warnings
    from mergeflow.cli.show import plan_json, show_plan
    from mergeflow.cli.sweeps import show_sweep_plan, sweep_plan_json
    from mergeflow.workflow.planning import plan_recipe
    from mergeflow.workflow.sweep_plan import plan_sweep

    options = make_options(cache, no_cache, workers=workers, memory=memory, strict=strict)
    read = read_with(recipe, set_)
    if read.candidates:
        swept = plan_sweep(read, out, options, only_warnings)
        if as_json:
            print_json(sweep_plan_json(swept))
        else:
            show_sweep_plan(swept, stdout())
        return
    made = plan_recipe(read, out, options, only_warnings)
    if as_json:
        print_json(plan_json(made))
    else:
        show_plan(made, stdout())


@app.command(epilog="Example: mergeflow validate merge.yml --strict")
@guarded
def validate(recipe: Recipe_, set_: Set = None, strict: Strict = False, as_json: Json = False) -> None:
    """Find every mistake in a recipe and in what it names, from headers alone, without touching a weight.

    All problems are listed at once, as file:line:column, with the nearest valid name. Exit code 1 when one is an error.
    """
    from mergeflow.cli.checking import problems_json, show_verdict
    from mergeflow.execute.events import ignore
    from mergeflow.workflow.validating import validate_recipe

    read = read_with(recipe, set_)
    compiled = validate_recipe(read, ignore, strict=strict)
    failed = any(problem.severity == "error" for problem in compiled.problems)
    if as_json:
        print_json(problems_json(compiled))
    else:
        show_verdict(recipe, compiled, failed=failed, candidates=len(read.candidates))
    raise typer.Exit(1 if failed else 0)


@app.command(epilog="Example: mergeflow explain workflows/demo.yaml --tensor '*layer.0*'")
@guarded
def explain(
    recipe: Recipe_,
    out: Out = None,
    tensor: Annotated[str, typer.Option(metavar="GLOB", help="Only tensors whose names match.")] = "*",
    set_: Set = None,
    cache: CacheFolder = None,
    no_cache: NoCache = False,
    as_json: Json = False,
) -> None:
    """Say for each output tensor how it is made and why it must be: its formula, parameters, what is known and changed.

    The formula is the whole chain over the names of models. What changed is said against the last run of the recipe.
    """
    from mergeflow.cli.explaining import explain_json, show_explanation
    from mergeflow.cli.progress import only_warnings
    from mergeflow.cli.sweeps import first_candidate
    from mergeflow.workflow.explaining import explain_recipe

    options = make_options(cache, no_cache)
    one, folder = first_candidate(read_with(recipe, set_), out)
    found = explain_recipe(one, tensor, options, only_warnings, folder)
    if as_json:
        print_json(explain_json(found))
    else:
        show_explanation(found)


@app.command()
@guarded
def methods(
    name: Annotated[str | None, typer.Argument(help="A method; all of them when left out.")] = None,
    as_json: Json = False,
) -> None:
    """List the merge methods, or say what one takes, computes and costs, and where it is from."""
    from mergeflow.cli.methods import methods_json, show_methods

    if as_json:
        print_json(methods_json(name))
    else:
        show_methods(name)


@app.command(epilog="Example: mergeflow schema > recipe.schema.json, and tell your editor")
@guarded
def schema() -> None:
    """Print the JSON schema of a recipe, with which editors complete and check recipes as you write them."""
    from mergeflow.methods.registry import all_methods
    from mergeflow.recipe.schema import json_schema

    parameters = {name: [(p.name, p.kind) for p in method.parameters] for name, method in all_methods()[0].items()}
    print_json(json_schema(parameters))


@app.command(epilog="Example: mergeflow convert merge.yml recipe.yaml")
@guarded
def convert(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A mergekit configuration, of one document or several.")],
    out: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="The recipe to write (default: print it, for this folder).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a recipe that is there.")] = False,
) -> None:
    """Write a mergekit file in the native form, which means the same, with its comments.

    Each document is a step. Fields without effect become comments, and paths start in the recipe's folder.
    """
    from mergeflow.cli.converting import convert_file

    convert_file(file, out, force=force)


def _version(wanted: bool) -> None:
    if wanted:
        from mergeflow import __version__

        print_text(f"mergeflow {__version__}")
        raise typer.Exit


@app.callback()
def mergeflow(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Merge language models by recipes. Change one number, pay only for the tensors that change."""


def main() -> None:
    """The entry point of the `mergeflow` command."""
    app(prog_name="mergeflow")
