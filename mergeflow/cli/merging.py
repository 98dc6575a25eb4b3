"""What `run` does, and shows while it does it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from mergeflow.errors import SweepError

if TYPE_CHECKING:
    from mergeflow.recipe.records import Recipe
    from mergeflow.workflow.options import Options
    from mergeflow.workflow.report import RunReport


def merge(recipe: Recipe, out: Path | None, options: Options, report: Path | None, *, quiet: bool) -> None:
    """Run a recipe with a progress bar, and say what was done; with `quiet`, only warnings are shown."""
    from mergeflow.cli.console import stdout
    from mergeflow.cli.reporting import check_report_place, write_report
    from mergeflow.cli.show import show_report
    from mergeflow.cli.sweeps import show_sweep

    if report is not None:
        check_report_place(report)
    failure = None
    try:
        done = _run(recipe, out, options, quiet=quiet)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("no output is half written, and the next run goes on from here") from None
    except SweepError as error:
        failure, done = error, cast("RunReport", error.report)
    if report is not None:
        write_report(report, done)
    if not quiet:
        (show_sweep if done.candidates else show_report)(done, stdout())
    if failure is not None:
        raise failure


def _run(recipe: Recipe, out: Path | None, options: Options, *, quiet: bool) -> RunReport:
    from mergeflow.cli.progress import ProgressBar, only_warnings
    from mergeflow.workflow.running import run_recipe

    if quiet:
        return run_recipe(recipe, out, options, only_warnings)
    with ProgressBar() as progress:
        return run_recipe(recipe, out, options, progress)
