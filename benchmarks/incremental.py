"""What a changed parameter of one layer costs: beside the full run, in place, and with smaller shards.

    python -m benchmarks.incremental [--folder DIR] [--size 1.1b] [--repeats 3]

The merge is TIES of three models over their base; the models are those of ``make bench``, made when they are missing.
Digests are known. Prints one line per case: the median in seconds, its share of the full run, and where the time goes.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.checkpoints import SIZES
from benchmarks.measure import measure
from benchmarks.run import MERGEFLOW, Workplace, make_models

RECIPE = """\
mergeflow: 1
vars: {{changed: 0.5}}
steps:
  final:
    merge_method: ties
    base_model: {models}/base
    models:
      - model: {models}/tune-1
        parameters: {{density: 0.5, weight: [{{filter: layers.1., value: "${{changed}}"}}, {{value: 0.5}}]}}
      - {{model: {models}/tune-2, parameters: {{density: 0.5, weight: 0.3}}}}
      - {{model: {models}/tune-3, parameters: {{density: 0.5, weight: 0.2}}}}
outputs:
  final: {{max_shard_size: {shard}}}
"""


def seconds(place: Workplace, recipe: Path, *arguments: str) -> tuple[float, dict[str, float]]:
    """Wall time of a run, and of its phases."""
    command = [*MERGEFLOW, "run", str(recipe), str(place.out), "--quiet", "--report", str(place.report), *arguments]
    sample = measure(command, place.log, place.environment())
    return sample.wall_seconds, json.loads(place.report.read_text())["phases"]


def compare(place: Workplace, shard: str) -> None:
    """The full run, then changes to one layer, for one size of shards."""
    recipe = place.recipe("incremental.yaml", RECIPE.format(models=place.models, shard=shard))
    place.forget(place.out, place.cache)
    seconds(place, recipe)  # digests
    full = []
    for _ in range(place.repeats):
        place.forget(place.out, place.cache)
        full.append(seconds(place, recipe))
    baseline = show(f"{shard} full run", full, None)
    values = iter(range(1, 10**6))
    for name, flags in (("one layer", ()), ("one layer, in place", ("--in-place",))):
        runs = [seconds(place, recipe, "--set", f"changed={0.5 + next(values) / 1000}", *flags) for _ in full]
        show(f"{shard} {name}", runs, baseline)
    show(
        f"{shard} nothing changed",
        [seconds(place, recipe, "--set", f"changed={0.5 + (next(values) - 1) / 1000}")],
        baseline,
    )


def show(name: str, runs: Sequence[tuple[float, dict[str, float]]], full: float | None) -> float:
    median = statistics.median(wall for wall, _ in runs)
    share = "" if full is None else f"{100 * median / full:5.1f} %"
    phases = {phase: round(statistics.median(p.get(phase, 0.0) for _, p in runs), 2) for phase in runs[0][1]}
    print(f"{name:30} {median:7.2f} s {share:8} {phases}", flush=True)
    return median


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/mergeflow-bench"))
    parser.add_argument("--size", default="1.1b", choices=sorted(SIZES))
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    place = Workplace(chosen.folder.resolve(), chosen.size, chosen.repeats)
    place.models.mkdir(parents=True, exist_ok=True)
    make_models(place, None)
    for shard in ("5GB", "500MB"):
        compare(place, shard)


if __name__ == "__main__":
    main()
