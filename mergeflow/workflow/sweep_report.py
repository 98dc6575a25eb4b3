"""The report of a sweep: its candidates, and the sums that a script reads which knows nothing of sweeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from mergeflow.workflow.options import peak_memory
from mergeflow.workflow.report import ByteCounts, CandidateReport, RunReport, TensorCounts


def swept_report(
    candidates: Sequence[CandidateReport],
    *,
    seconds: float,
    phases: Mapping[str, float],
    digest_bytes: int,
    warnings: Sequence[str],
) -> RunReport:
    """The sums over all candidates that were made.

    Args:
        phases, digest_bytes: of what was done once for all of them.
    """
    made = [(candidate.name, candidate.report) for candidate in candidates if candidate.report is not None]
    reports = [report for _, report in made]
    moved = [report.bytes for report in reports]
    counts = [report.tensors for report in reports]
    spent = Counter(dict(phases))
    for report in reports:
        spent.update(report.phases)
    return RunReport(
        tensors=TensorCounts(
            total=sum(it.total for it in counts),
            computed=sum(it.computed for it in counts),
            cached=sum(it.cached for it in counts),
            kept=sum(it.kept for it in counts),
        ),
        bytes=ByteCounts(
            read=digest_bytes + sum(it.read for it in moved),
            written=sum(it.written for it in moved),
            cache_read=sum(it.cache_read for it in moved),
            cache_written=sum(it.cache_written for it in moved),
        ),
        seconds=seconds,
        phases=dict(spent),
        peak_rss_bytes=peak_memory(),
        keys={f"{name}/{tensor}": key for name, report in made for tensor, key in report.keys.items()},
        fates={f"{name}/{tensor}": fate for name, report in made for tensor, fate in report.fates.items()},
        outputs=tuple(output for report in reports for output in report.outputs),
        statistics={kind: sum(report.statistics[kind] for report in reports) for kind in ("computed", "cached")},
        warnings=tuple(warnings),
        vocabularies=tuple(dict.fromkeys(made for report in reports for made in report.vocabularies)),
        candidates=tuple(candidates),
        copied=sum(report.copied for report in reports),
    )
