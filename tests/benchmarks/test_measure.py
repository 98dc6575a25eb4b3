"""Measuring a command from outside, and turning measurements into a page."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import recipes
from benchmarks.measure import CommandFailed, Sample, collect, measure
from benchmarks.report import current_page, page
from benchmarks.run import some_merges, with_earlier
from mergeflow.recipe.read import read_recipe

ROOT = Path(__file__).parents[2]


def test_a_command_is_charged_for_its_memory_and_its_time(tmp_path: Path) -> None:
    """A child that fills 200 MB is seen to do so, and not to fill more; a computing one to take processor time."""
    # Measured by a small process, as benchmarks are: a child is born with its parent's count of memory.
    program = f"""
import sys
from pathlib import Path
from benchmarks.measure import measure
child = "held = b'x' * 200_000_000; sum(range(3_000_000))"
sample = measure([sys.executable, "-c", child], Path({str(tmp_path / "log")!r}))
print(sample.peak_bytes, sample.cpu_seconds, sample.wall_seconds)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    peak, processor, wall = map(float, done.stdout.split())
    assert 200e6 < peak < 300e6
    assert processor > 0
    assert wall > 0


def test_a_command_that_fails_is_an_error_with_the_end_of_its_output(tmp_path: Path) -> None:
    """A figure of a failed run would be worse than none."""
    with pytest.raises(CommandFailed, match="no such model"):
        measure([sys.executable, "-c", "raise SystemExit('no such model')"], tmp_path / "log")


def test_the_median_stands_for_repeated_runs() -> None:
    """One slow run among three does not show."""
    samples = collect([Sample(1.0, 0.5, 10), Sample(9.0, 0.6, 30), Sample(2.0, 0.7, 20)])
    assert (samples.wall(), samples.cpu(), samples.peak()) == (2.0, 0.6, 20)


@pytest.mark.parametrize("name", recipes.MERGES)
def test_every_measured_merge_is_a_valid_mergekit_file(name: str, tmp_path: Path) -> None:
    """Both tools read the same file: nothing in it is ours alone, nothing in it is doubtful."""
    path = tmp_path / "merge.yml"
    path.write_text(recipes.merge_recipe(name, tmp_path))
    recipe = read_recipe(path)
    assert recipe.form == "mergekit"
    assert recipe.problems == ()


def test_merges_are_chosen_by_name() -> None:
    """In the order of the table, whatever the order asked for; a name that is none says which there are."""
    assert some_merges("ties, linear") == ("linear", "ties")
    with pytest.raises(argparse.ArgumentTypeError, match=r"no such merge: tyes; there are linear, slerp"):
        some_merges("ties,tyes")


def test_figures_that_are_not_measured_again_stay(tmp_path: Path) -> None:
    """A run of some merges replaces their rows of the results file and leaves the others."""
    old = [{"case": case, "tool": "mergeflow", "state": "first", "age": "old"} for case in ("linear", "ties")]
    (tmp_path / "1.1b.json").write_text(json.dumps({"results": old}))
    new = {"case": "ties", "tool": "mergeflow", "state": "first", "age": "new"}
    assert with_earlier([new], tmp_path / "1.1b.json") == [old[0], new]
    assert with_earlier([new], tmp_path / "none.json") == [new]


@pytest.mark.parametrize("steps", [2, 20])
def test_a_chain_has_as_many_steps_as_it_is_asked_for(steps: int, tmp_path: Path) -> None:
    """Each step takes the result of the one before it."""
    path = tmp_path / "chain.yaml"
    path.write_text(recipes.chain(tmp_path, steps))
    recipe = read_recipe(path)
    assert recipe.problems == ()
    assert [str(step.base) for step in recipe.steps[1:]] == [step.name for step in recipe.steps[:-1]]
    assert len(recipe.steps) == steps


def test_the_page_says_so_when_nothing_was_measured() -> None:
    """No table without figures."""
    assert "Nothing has been measured yet" in page(None)


def test_the_page_shows_how_many_times_faster_a_merge_is() -> None:
    """mergekit's wall time over that of mergeflow's first run, peer and own memory beside it."""
    row = {"case": "ties", "report": None}
    slow = {"wall_seconds": [500.0], "cpu_seconds": [900.0], "peak_bytes": [6_000_000_000]}
    fast = {"wall_seconds": [20.0, 30.0, 25.0], "cpu_seconds": [40.0], "peak_bytes": [500_000_000]}
    known = {**fast, "wall_seconds": [18.0]}
    machine = {
        "processor": "a processor",
        "cores": 2,
        "memory_bytes": 2**34,
        "python": "3.11",
        "versions": {"mergekit": "0.1.5"},
        "model_bytes": 2_200_000_000,
        "repeats": 3,
    }
    results = [
        {**row, "tool": "mergekit", "state": "first", "samples": slow},
        {**row, "tool": "mergeflow", "state": "first", "samples": fast},
        {**row, "tool": "mergeflow", "state": "known", "samples": known},
    ]
    text = page({"machine": machine, "results": results})
    assert "| ties | 500 s | 25 s | 20 x | 18 s | 40 s | 6000 MB | 500 MB |" in text


def test_the_committed_page_is_the_one_the_results_give() -> None:
    """docs/performance.md was not edited by hand, and not forgotten."""
    assert (ROOT / "docs" / "performance.md").read_text() == current_page()
