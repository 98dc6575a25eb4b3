"""Plans, reports and methods as tables for people, and as plain data for scripts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from mergeflow.cli.console import plain, styled
from mergeflow.cli.units import seconds_text, size_text
from mergeflow.errors import counted
from mergeflow.graph.candidates import StepKeeping
from mergeflow.graph.plan import Plan, StepPlan
from mergeflow.recipe.records import CachePolicy
from mergeflow.workflow.report import RunReport


def show_plan(plan: Plan, console: Console) -> None:
    """A row per step: what would run, what is known already, and why."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("step", "method"):
        table.add_column(name, no_wrap=True)
    for name in ("tensors", "compute", "cached", "unneeded"):
        table.add_column(name, justify="right")
    table.add_column("statistics known", justify="right")
    table.add_column("why")
    for step in plan.steps:
        table.add_row(
            plain(step.name),
            step.method,
            str(step.tensors),
            str(step.computed),
            str(step.cached),
            str(step.tensors - step.computed - step.cached),
            f"{step.statistics_known} of {step.statistics}" if step.statistics else "-",
            plain("; ".join(step.why)) or "nothing to do",
        )
    console.print(table)
    console.print()
    _show_keeping(plan, console)
    for output in plan.outputs:
        total = counted(len(output.fates), "tensor")
        place = f" -> {plain(output.path)}" if output.path is not None else ""
        console.print(
            f"output {plain(output.step)}{place}: {total}, {output.count('computed')} to compute, "
            f"{output.count('cached')} from the cache, {output.count('kept')} kept; "
            f"{size_text(output.bytes_written)} to write"
        )
    console.print(
        f"reads {size_text(plan.bytes_read)}, writes {size_text(plan.bytes_written)} to outputs and "
        f"{size_text(plan.cache_bytes_written)} to the cache, in {counted(len(plan.tasks), 'task')}; "
        f"peak memory at most {size_text(plan.peak_bytes)}"
    )
    if plan.digests_missing:
        console.print(
            f"not read on this machine yet: {counted(plan.digests_missing, 'input tensor')}; a run hashes them first, "
            "and what depends on them is counted as to compute until then"
        )


def _show_keeping(plan: Plan, console: Console) -> None:
    """A line per step: what of its results a run puts into the cache, and the numbers behind that."""
    found = [(step, step.keeping) for step in plan.steps if step.keeping is not None]
    if found:
        origin = f"measured here on {plan.rates.measured}" if plan.rates.measured else "nominal until a run measures"
        console.print(f"into the cache besides statistics (rates: {origin}):")
    for step, keeping in found:
        console.print(f"  {plain(step.name)}: {_keeping_text(keeping, step.policy)}")


def _keeping_text(keeping: StepKeeping, policy: CachePolicy) -> str:
    times = (
        f"again {seconds_text(keeping.again)}, write {seconds_text(keeping.write)} + read {seconds_text(keeping.read)}"
    )
    if keeping.kept:
        why = ", as cache: always says" if policy == "always" else ""
        total = counted(keeping.candidates, "tensor")
        return f"keeps {keeping.kept} of {total}, {size_text(keeping.nbytes)}: {times}{why}"
    where = "" if keeping.is_read else "; only its output needs it"
    return f"keeps none: {times}{where}"


def _keeping_json(keeping: StepKeeping) -> dict[str, object]:
    return {
        "candidates": keeping.candidates,
        "kept": keeping.kept,
        "bytes": keeping.nbytes if keeping.kept else 0,
        "is_read": keeping.is_read,
        "seconds": {"again": keeping.again, "write": keeping.write, "read": keeping.read},
    }


def plan_json(plan: Plan) -> dict[str, object]:
    """The plan as plain data."""
    return {
        "steps": [_step_json(step) for step in plan.steps],
        "outputs": [
            {
                "step": output.step,
                "path": output.path,
                "tensors": {
                    "total": len(output.fates),
                    "computed": output.count("computed"),
                    "cached": output.count("cached"),
                    "kept": output.count("kept"),
                },
                "bytes_written": output.bytes_written,
            }
            for output in plan.outputs
        ],
        "tasks": len(plan.tasks),
        "bytes": {
            "read": plan.bytes_read,
            "written": plan.bytes_written,
            "cache_written": plan.cache_bytes_written,
        },
        "peak_memory_bytes": plan.peak_bytes,
        "digests_missing": plan.digests_missing,
        "rates": {"is_nominal": not plan.rates.measured, **asdict(plan.rates)},
    }


def _step_json(step: StepPlan) -> dict[str, object]:
    return {
        "step": step.name,
        "method": step.method,
        "cache": step.policy,
        "tensors": {"total": step.tensors, "computed": step.computed, "cached": step.cached},
        "statistics": {"needed": step.statistics, "known": step.statistics_known},
        "why": list(step.why),
        "keeping": _keeping_json(step.keeping) if step.keeping is not None else None,
    }


def show_report(report: RunReport, console: Console) -> None:
    """What a run did, in a few lines."""
    counts, moved = report.tensors, report.bytes
    for output in report.outputs:
        console.print(styled((plain(output.step), "bold"), f" -> {plain(output.path)}"))
    for made in report.vocabularies:
        console.print(
            f"vocabulary of {plain(made.step)}: {counted(made.tokens, 'token')} in {counted(made.rows, 'row')}, "
            f"{made.shared} shared, {made.added} added, {made.dropped} dropped"
        )
    total = counted(counts.total, "tensor")
    console.print(
        f"{total}: {counts.computed} computed, {counts.cached} from the cache, {counts.kept} kept as they were; "
        f"statistics: {_counts(report)}"
    )
    console.print(
        f"read {size_text(moved.read)}, wrote {size_text(moved.written)}; cache: read {size_text(moved.cache_read)}, "
        f"wrote {size_text(moved.cache_written)}"
    )
    console.print(
        f"{seconds_text(report.seconds)}{_phases(report.phases)}, peak memory {size_text(report.peak_rss_bytes)}"
    )


def _phases(phases: Mapping[str, float]) -> str:
    shown = [f"{name} {seconds_text(seconds)}" for name, seconds in phases.items() if seconds >= 0.05]
    return f" ({', '.join(shown)})" if shown else ""


def _counts(report: RunReport) -> str:
    return f"{report.statistics['computed']} computed, {report.statistics['cached']} from the cache"
