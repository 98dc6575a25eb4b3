"""What is said of sweeps: a row per candidate, and the sums."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from mergeflow.cli.console import plain, stderr, styled
from mergeflow.cli.show import plan_json
from mergeflow.cli.units import seconds_text, size_text
from mergeflow.errors import counted
from mergeflow.graph.plan import Plan
from mergeflow.recipe.records import Recipe
from mergeflow.workflow.report import CandidateReport, RunReport

if TYPE_CHECKING:
    from mergeflow.workflow.sweep_plan import SweepPlan


def show_sweep(report: RunReport, console: Console) -> None:
    """What each candidate cost and what it had from others, then the whole."""
    table = _table("seconds", "computed", "cached", "kept", "statistics", "read", "written", "shared")
    for candidate in report.candidates:
        table.add_row(plain(candidate.name), *_cells(candidate))
    console.print(table)
    console.print()
    counts, moved = report.tensors, report.bytes
    console.print(
        f"{counted(len(report.candidates), 'candidate')}: {counts.computed} tensors computed, {counts.cached} from the "
        f"cache, {counts.kept} kept (of these {report.copied} copied from other candidates); statistics: "
        f"{report.statistics['computed']} computed, {report.statistics['cached']} from the cache"
    )
    console.print(
        f"read {size_text(moved.read)}, wrote {size_text(moved.written)}; cache: read {size_text(moved.cache_read)}, "
        f"wrote {size_text(moved.cache_written)}"
    )
    console.print(f"{seconds_text(report.seconds)}, peak memory {size_text(report.peak_rss_bytes)}")


def _cells(candidate: CandidateReport) -> list[str]:
    report = candidate.report
    if report is None:
        return ["failed", *["-"] * 7]
    counts, known = report.tensors, report.statistics
    return [
        f"{report.seconds:.2f}",
        str(counts.computed),
        str(counts.cached),
        str(counts.kept),
        f"{known['computed']} + {known['cached']} cached",
        size_text(report.bytes.read + report.bytes.cache_read),
        size_text(report.bytes.written + report.bytes.cache_written),
        f"{counted(candidate.shared_tensors, 'tensor')}, {counted(candidate.shared_statistics, 'statistic')}",
    ]


def show_sweep_plan(plan: SweepPlan, console: Console) -> None:
    """What would run for each candidate, given that those before it have run."""
    table = _table("compute", "cached", "kept", "statistics known", "read", "write")
    for candidate in plan.candidates:
        table.add_row(plain(candidate.name), *_plan_cells(candidate.plan))
    console.print(table)
    console.print()
    console.print(
        f"{counted(len(plan.candidates), 'candidate')}: reads {size_text(plan.bytes_read)}, writes "
        f"{size_text(plan.bytes_written)} to outputs and {size_text(plan.cache_bytes_written)} to the cache; "
        f"peak memory at most {size_text(plan.peak_bytes)}"
    )
    if plan.digests_missing:
        console.print(
            f"not read on this machine yet: {counted(plan.digests_missing, 'input tensor')}; a run hashes them first, "
            "and what depends on them is counted as computed for every candidate until then"
        )


def _plan_cells(plan: Plan) -> list[str]:
    known, needed = (sum(getattr(step, name) for step in plan.steps) for name in ("statistics_known", "statistics"))
    return [
        *(str(sum(output.count(fate) for output in plan.outputs)) for fate in ("computed", "cached", "kept")),
        f"{known} of {needed}" if needed else "-",
        size_text(plan.bytes_read),
        size_text(plan.bytes_written + plan.cache_bytes_written),
    ]


def sweep_plan_json(plan: SweepPlan) -> dict[str, object]:
    """The plan of a sweep as plain data: that of each candidate, and the sums."""
    return {
        "candidates": [
            {"name": candidate.name, "values": dict(candidate.values), **plan_json(candidate.plan)}
            for candidate in plan.candidates
        ],
        "tasks": sum(len(candidate.plan.tasks) for candidate in plan.candidates),
        "bytes": {
            "read": plan.bytes_read,
            "written": plan.bytes_written,
            "cache_written": plan.cache_bytes_written,
        },
        "peak_memory_bytes": plan.peak_bytes,
        "digests_missing": plan.digests_missing,
    }


def first_candidate(recipe: Recipe, out: Path | None) -> tuple[Recipe, Path | None]:
    """The candidate that a command takes which looks at one recipe, with its folder; says so on stderr."""
    if not recipe.candidates:
        return recipe, out
    first = recipe.candidates[0]
    names = " ".join(f"--set {name}=..." for name in recipe.sweep)
    message = f"{plain(first.candidate)}, the first of {counted(len(recipe.candidates), 'candidate')}"
    stderr().print(styled((f"this is {message}; {plain(names)} takes another", "yellow")))
    return first, None if out is None else out / first.candidate


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("candidate", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    return table
