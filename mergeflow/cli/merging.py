"""What `run` does, and shows while it does it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mergeflow.recipe.records import Recipe
    from mergeflow.workflow.options import Options
    from mergeflow.workflow.report import RunReport


def merge(recipe: Recipe, out: Path | None, options: Options, report: Path | None, *, quiet: bool) -> None:
    """Run a recipe with a progress bar, and say what was done; with `quiet`, only warnings are shown."""
    from mergeflow.cli.console import stdout
    from mergeflow.cli.reporting import check_report_place, write_report
    from mergeflow.cli.show import show_report

    if report is not None:
        check_report_place(report)
    try:
        done = _run(recipe, out, options, quiet=quiet)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("no output is half written, and the next run goes on from here") from None
    if report is not None:
        write_report(report, done)
    if not quiet:
        show_report(done, stdout())


def _run(recipe: Recipe, out: Path | None, options: Options, *, quiet: bool) -> RunReport:
    from mergeflow.cli.progress import ProgressBar, only_warnings
    from mergeflow.workflow.running import run_recipe

    if quiet:
        return run_recipe(recipe, out, options, only_warnings)
    with ProgressBar() as progress:
        return run_recipe(recipe, out, options, progress)
