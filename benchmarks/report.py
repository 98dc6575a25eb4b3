"""docs/performance.md, made from benchmarks/results/1.1b.json (``make docs``: benchmarks/pages.py)."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.recipes import MERGES

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SOURCE = RESULTS / "1.1b.json"
PAGE = ROOT / "docs" / "performance.md"

INTRODUCTION = """\
# Performance

Made by `make bench` from `benchmarks/results/1.1b.json`; do not edit. The models are synthetic Llamas of 1.1B
parameters in bfloat16 (`benchmarks/checkpoints.py`), a base and three fine-tunes. Their files are in the page cache, as
they are for the peer. `linear` and `slerp` merge two of them, `karcher` and `multislerp` the three fine-tunes,
`nuslerp` two of them over their base, and all others three over their base, at density 0.5 where there is one
(`benchmarks/recipes.py`).
"""

NOT_YET = "\nNothing has been measured yet.\n"


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement, as the results file has it; medians of its repeats."""

    case: str
    tool: str
    state: str
    wall: float
    cpu: float
    peak: float
    report: Mapping[str, Any]


def read_rows(record: Mapping[str, Any]) -> list[Row]:
    """The rows of a results file."""
    return [
        Row(
            case=entry["case"],
            tool=entry["tool"],
            state=entry["state"],
            wall=statistics.median(entry["samples"]["wall_seconds"]),
            cpu=statistics.median(entry["samples"]["cpu_seconds"]),
            peak=statistics.median(entry["samples"]["peak_bytes"]),
            report=entry["report"] or {},
        )
        for entry in record["results"]
    ]


def find(rows: Iterable[Row], case: str, tool: str, state: str) -> Row | None:
    return next((row for row in rows if (row.case, row.tool, row.state) == (case, tool, state)), None)


def page(record: Mapping[str, Any] | None) -> str:
    """The whole page; without figures when nothing has been measured."""
    if record is None:
        return INTRODUCTION + NOT_YET
    rows = read_rows(record)
    sections = (machine_section, merge_section, again_section, memory_section)
    return "\n".join([INTRODUCTION, *(section(record, rows) for section in sections)])


def machine_section(record: Mapping[str, Any], rows: Sequence[Row]) -> str:
    machine = record["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(machine["versions"].items()))
    copy, read, synced = (
        find(rows, *row) for row in (("copy", "cp", ""), ("read", "dd", ""), ("copy", "cp", "synced"))
    )
    floor = f"`cp` of one model takes {seconds(copy.wall)}, reading it {seconds(read.wall)}." if copy and read else ""
    floor += f" Until the copy is on the disk, as every output of ours is, {seconds(synced.wall)}." if synced else ""
    return (
        f"Machine: {machine['processor']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB; "
        f"Python {machine['python']}, {versions}. One model: {machine['model_bytes'] / 1e9:.2f} GB. {floor} "
        f"Figures are medians of {machine['repeats']} runs (mergekit's: as many as its results hold).\n"
    )


def merge_section(record: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Each merge by both tools."""
    lines = []
    for case in MERGES:
        first, known = find(rows, case, "mergeflow", "first"), find(rows, case, "mergeflow", "known")
        peer = find(rows, case, "mergekit", "first")
        if first is None or known is None:
            continue
        lines.append(
            [
                case,
                seconds(peer.wall) if peer else "-",
                seconds(first.wall),
                f"{peer.wall / first.wall:.0f} x" if peer else "-",
                seconds(known.wall),
                seconds(first.cpu),
                megabytes(peer.peak) if peer else "-",
                megabytes(first.peak),
            ]
        )
    head = ["merge", "mergekit", "mergeflow, first run", "faster", "digests known", "processor time, first run"]
    return (
        "## One merge\n\n"
        "The first run also hashes every input, tensor by tensor, right before it is merged; digests are remembered on "
        "the machine. `digests known` is what the same merge costs from then on, the cache empty.\n\n"
        + table([*head, "peak memory: mergekit", "mergeflow"], lines)
    )


def again_section(record: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """What a second run costs."""
    lines = []
    for state, meaning in (
        ("digests unknown", "the first run on a machine"),
        ("first", "the inputs' digests known, cache empty"),
        ("unchanged", "again, nothing changed"),
        ("one layer", "another `t` in one of its layers"),
        ("one layer, in place", "the same with `--in-place`"),
        ("changed t", "another `t` for the whole slerp"),
    ):
        row = find(rows, "steps", "mergeflow", state)
        if row is None:
            continue
        moved, counts, tensors = row.report["bytes"], row.report["statistics"], row.report["tensors"]
        lines.append(
            [
                meaning,
                seconds(row.wall),
                f"{tensors['computed']} of {tensors['total']}",
                f"{counts['computed']} ({counts['cached']} cached)",
                gigabytes(moved["read"]),
                gigabytes(moved["written"]),
                gigabytes(moved["cache_read"]),
                gigabytes(moved["cache_written"]),
            ]
        )
    looks = [
        f"`mergeflow {verb}` of this recipe takes {seconds(row.wall)} and {megabytes(row.peak)}."
        for verb in ("validate", "plan")
        if (row := find(rows, verb, "mergeflow", ""))
    ]
    head = ["run", "seconds", "tensors computed", "statistics computed", "read", "written", "from the cache", "to it"]
    return (
        "## The second run\n\n"
        "A recipe of five steps: three task vectors, TIES over them, a slerp of the result with the base. Statistics "
        "are the thresholds of TIES and the cosines of slerp; what else is kept, the cost rule decides (docs/cache.md)."
        "\n\n" + table(head, lines) + "\n" + " ".join(looks) + "\n"
    )


def memory_section(record: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Chains of different lengths."""
    chains = sorted((int(row.case.split()[1]), row) for row in rows if row.case.startswith("chain "))
    lines = [
        [str(steps), seconds(row.wall), megabytes(row.peak), gigabytes(row.report["bytes"]["read"])]
        for steps, row in chains
    ]
    return (
        "## Steps in a row\n\n"
        "Slerps, each of the result so far with one more model. What a later pass needs of a large tensor is kept in a "
        "scratch file, a block at a time, so memory hardly grows with the steps.\n\n"
        + table(["steps", "seconds", "peak memory", "read"], lines)
    )


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table; every column but the first is of numbers."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, rule, *lines])


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 10 else f"{value:.0f} s"


def megabytes(value: float) -> str:
    return f"{value / 1e6:.0f} MB"


def gigabytes(value: float) -> str:
    return "0" if value == 0 else f"{value / 1e9:.2f} GB"


def current_page() -> str:
    return page(json.loads(SOURCE.read_text()) if SOURCE.exists() else None)


def write_page() -> Path:
    """Write docs/performance.md from the results; its path."""
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(current_page())
    return PAGE
