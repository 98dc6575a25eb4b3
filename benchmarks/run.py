"""mergeflow beside mergekit and beside `cp`, in one run on one machine: ``make bench``.

Figures are written to benchmarks/results/SIZE.json, and docs/performance.md is made from them.

    floor       cp of one model (until it is in memory, and until it is on the disk), reading one model
    merges      linear, slerp, ties and more (recipes.MERGES): mergekit; mergeflow the first time, and with the
                inputs' digests known
    again       a five-step recipe: first, unchanged, with another slerp t, in one layer only; validate and plan of it
    memory      chains of 2 and of 20 slerps

With `--methods ties,sce` only these merges are measured, and the other figures of the results file stay as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from benchmarks import recipes
from benchmarks.measure import CommandFailed, Sample, Samples, collect, measure
from benchmarks.peer import VERSION as MERGEKIT_VERSION
from benchmarks.peer import mergekit_command
from benchmarks.report import RESULTS, write_page

ROOT = Path(__file__).parents[1]
# The command of this checkout, even where another version is installed.
MERGEFLOW = (sys.executable, "-c", "from mergeflow.cli.main import main; main()")

CHAINS = (2, 20)


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where one benchmark run keeps its things: models that stay, and what each measurement starts without."""

    folder: Path
    size: str
    repeats: int

    @property
    def models(self) -> Path:
        return self.folder / self.size

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def home(self) -> Path:
        """What mergeflow remembers of this machine: digests of the models."""
        return self.folder / "home"

    @property
    def report(self) -> Path:
        return self.folder / "report.json"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    def recipe(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    def forget(self, *folders: Path) -> None:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)

    def environment(self) -> dict[str, str]:
        return {
            "PYTHONPATH": str(ROOT),
            "MERGEFLOW_CACHE": str(self.cache),
            "MERGEFLOW_HOME": str(self.home),
            "HF_HUB_OFFLINE": "1",
        }


@dataclass(frozen=True, slots=True)
class Result:
    """One row: what was measured, by which tool, in which state of the cache, and mergeflow's own report of it."""

    case: str
    tool: str
    state: str
    samples: Samples
    report: Mapping[str, object] | None = None


def repeat(
    place: Workplace,
    case: str,
    tool: str,
    state: str,
    times: int,
    once: Callable[[], Sample],
    *,
    reported: bool = False,
) -> Result:
    """Measure a command `times` times, saying so, and keep mergeflow's report of the last one when there is one."""
    print(f"{case:12} {tool:10} {state:10}", end=" ", flush=True)
    samples = collect([once() for _ in range(times)])
    print(f"{samples.wall():8.2f} s {samples.peak() / 1e6:8.0f} MB", flush=True)
    report = summary(json.loads(place.report.read_text())) if reported else None
    return Result(case, tool, state, samples, report)


def summary(report: Mapping[str, object]) -> dict[str, object]:
    """What the page needs of a run's report: not the key of every tensor."""
    return {name: report[name] for name in ("tensors", "bytes", "statistics", "seconds", "phases", "peak_rss_bytes")}


def floor(place: Workplace) -> list[Result]:
    """What the machine itself needs to copy one model, and to read it."""
    weights = place.models / "base" / "model.safetensors"

    def copy(then: str = "") -> Sample:
        place.forget(place.out)
        place.out.mkdir()
        return measure(["sh", "-c", f"cp '{weights}' '{place.out}'{then}"], place.log)

    def read() -> Sample:
        return measure(["dd", f"if={weights}", "of=/dev/null", "bs=1M"], place.log)

    return [
        repeat(place, "read", "dd", "", place.repeats, read),
        repeat(place, "copy", "cp", "", place.repeats, copy),
        repeat(place, "copy", "cp", "synced", place.repeats, lambda: copy(f" && sync '{place.out}'/*")),
    ]


def run_mergeflow(place: Workplace, recipe: Path, *arguments: str) -> Sample:
    command = [*MERGEFLOW, "run", str(recipe), str(place.out), "--quiet", "--report", str(place.report), *arguments]
    return measure(command, place.log, place.environment())


def merges(place: Workplace, names: Sequence[str]) -> list[Result]:
    """Each merge with nothing known, and again with the models' digests known, as they are from the second run on."""
    results = []
    for name in names:
        recipe = place.recipe(f"{name}.yml", recipes.merge_recipe(name, place.models))
        for state, forgotten in (
            ("first", (place.out, place.cache, place.home)),
            ("known", (place.out, place.cache)),
        ):

            def once(recipe: Path = recipe, forgotten: tuple[Path, ...] = forgotten) -> Sample:
                place.forget(*forgotten)
                return run_mergeflow(place, recipe)

            results.append(repeat(place, name, "mergeflow", state, place.repeats, once, reported=True))
    return results


def peer_merges(place: Workplace, names: Sequence[str], command: str, times: int) -> list[Result]:
    """The same files, read by mergekit."""
    results = []
    for name in names:
        recipe = place.recipe(f"{name}.yml", recipes.merge_recipe(name, place.models))

        def once(recipe: Path = recipe) -> Sample:
            place.forget(place.out)
            arguments = [command, str(recipe), str(place.out), "--quiet"]
            return measure(arguments, place.log, {"HF_HUB_OFFLINE": "1"})

        results.append(repeat(place, name, "mergekit", "first", times, once))
    return results


def again(place: Workplace) -> list[Result]:
    """TIES, then slerp: what a run costs when nothing changed, and when the slerp's t did, everywhere or in a layer."""
    recipe = place.recipe("steps.yaml", recipes.ties_then_slerp(place.models))

    def first(*forgotten: Path) -> Sample:
        place.forget(place.out, place.cache, *forgotten)
        return run_mergeflow(place, recipe)

    def look(verb: str) -> Callable[[], Sample]:
        arguments = [str(recipe), str(place.out)] if verb == "plan" else [str(recipe)]
        return lambda: measure([*MERGEFLOW, verb, *arguments], place.log, place.environment())

    values = iter(range(10**6))

    def changed(variable: str, *flags: str) -> Sample:
        # A value that no earlier repeat has had.
        return run_mergeflow(place, recipe, "--set", f"{variable}={0.5 + next(values) / 1000}", *flags)

    def steps(state: str, once: Callable[[], Sample]) -> Result:
        return repeat(place, "steps", "mergeflow", state, place.repeats, once, reported=True)

    return [
        steps("digests unknown", lambda: first(place.home)),
        steps("first", first),
        steps("unchanged", lambda: run_mergeflow(place, recipe)),
        # In this order: after `changed t`, the next run has the old `t` again, which changes every tensor.
        steps("one layer", lambda: changed("t_of_layer_1")),
        steps("one layer, in place", lambda: changed("t_of_layer_1", "--in-place")),
        steps("changed t", lambda: changed("t")),
        repeat(place, "validate", "mergeflow", "", max(3, place.repeats), look("validate")),
        repeat(place, "plan", "mergeflow", "", max(3, place.repeats), look("plan")),
    ]


def chains(place: Workplace) -> list[Result]:
    """Peak memory of a chain must not grow with its length."""
    results = []
    for steps in CHAINS:
        recipe = place.recipe(f"chain-{steps}.yaml", recipes.chain(place.models, steps))

        def once(recipe: Path = recipe) -> Sample:
            place.forget(place.out, place.cache)
            return run_mergeflow(place, recipe)

        results.append(repeat(place, f"chain {steps}", "mergeflow", "known", 1, once, reported=True))
    return results


def machine(place: Workplace, *, with_peer: bool) -> dict[str, object]:
    """What the figures were measured on, and with."""
    versions = {name: metadata.version(name) for name in ("torch", "zarr", "zarrs", "dask", "numpy")}
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions | ({"mergekit": MERGEKIT_VERSION} if with_peer else {}),
        "model_bytes": (place.models / "base" / "model.safetensors").stat().st_size,
        "repeats": place.repeats,
    }


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def make_models(place: Workplace, layers: int | None) -> None:
    """The checkpoints, by a process of its own: this one must stay small (see measure.py)."""
    command = [sys.executable, "-m", "benchmarks.checkpoints", str(place.models), "--size", place.size.split("-")[0]]
    command += [] if layers is None else ["--layers", str(layers)]
    made = subprocess.run(command, check=False, cwd=ROOT)
    if made.returncode:
        raise SystemExit(made.returncode)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="mergeflow beside mergekit and beside cp")
    default = os.environ.get("MERGEFLOW_BENCH", "/tmp/mergeflow-bench")
    parser.add_argument("--folder", type=Path, default=Path(default), help="models and outputs (%(default)s)")
    parser.add_argument("--size", choices=("1.1b", "tiny"), default="1.1b", help="of each model (%(default)s)")
    parser.add_argument("--layers", type=int, help="another number of layers than the size's own")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each measurement (%(default)s)")
    parser.add_argument("--mergekit", type=Path, help="a virtual environment that has mergekit (else one is made)")
    parser.add_argument("--mergekit-repeats", type=int, default=1, help="runs of each merge by mergekit (%(default)s)")
    parser.add_argument("--no-mergekit", action="store_true", help="leave the peer out")
    parser.add_argument("--methods", type=some_merges, help="measure only these merges: names with commas between")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results (%(default)s)")
    return parser.parse_args()


def some_merges(text: str) -> tuple[str, ...]:
    """Names of merges from the command line, in the order of the table."""
    asked = [name.strip() for name in text.split(",")]
    unknown = [name for name in asked if name not in recipes.MERGES]
    if unknown:
        raise argparse.ArgumentTypeError(f"no such merge: {', '.join(unknown)}; there are {', '.join(recipes.MERGES)}")
    return tuple(name for name in recipes.MERGES if name in asked)


def measured(place: Workplace, given: argparse.Namespace) -> list[Result]:
    """Everything that was asked for."""
    names = given.methods or tuple(recipes.MERGES)
    results = merges(place, names)
    if not given.methods:
        results = [*floor(place), *results, *again(place), *chains(place)]
    if not given.no_mergekit:
        command = mergekit_command(given.mergekit or place.folder / "mergekit")
        results += peer_merges(place, names, command, given.mergekit_repeats)
    return results


def with_earlier(results: Sequence[Mapping[str, object]], path: Path) -> list[Mapping[str, object]]:
    """`results`, after the rows of an earlier results file that they do not measure again."""
    if not path.exists():
        return list(results)
    now = {_measures(row) for row in results}
    return [*(row for row in json.loads(path.read_text())["results"] if _measures(row) not in now), *results]


def _measures(row: Mapping[str, object]) -> tuple[object, ...]:
    return row["case"], row["tool"], row["state"]


def main() -> None:
    given = arguments()
    size = given.size if given.layers is None else f"{given.size}-{given.layers}-layers"
    place = Workplace(given.folder.resolve(), size, given.repeats)
    place.models.mkdir(parents=True, exist_ok=True)
    make_models(place, given.layers)
    try:
        results = [asdict(result) for result in measured(place, given)]
    except CommandFailed as error:
        raise SystemExit(str(error)) from error
    place.forget(place.out, place.cache, place.home)
    path = given.results / f"{size}.json"
    rows = with_earlier(results, path) if given.methods else results
    record = {
        "size": size,
        "machine": machine(place, with_peer=any(row["tool"] == "mergekit" for row in rows)),
        "results": rows,
    }
    given.results.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(path)
    if given.results == RESULTS:
        print(write_page())


if __name__ == "__main__":
    main()
