"""Sweeps: every combination of values is what a run of its own would be, and what they share is computed once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from three_steps import RECIPE, options, three_models, weights, write_recipe

import mergeflow
from mergeflow.errors import OutputError, RecipeError, SweepError
from mergeflow.workflow.report import RunReport

SWEPT = (
    RECIPE.replace("steps:\n", "sweep: {density: [0.5, 0.25], weight: [1, 0.5]}\nsteps:\n", 1)
    .replace("density: 0.5", 'density: "${density}"')
    .replace("weight: 0.4", 'weight: "${weight}"')
)
CANDIDATES = ["density=0.5,weight=1", "density=0.5,weight=0.5", "density=0.25,weight=1", "density=0.25,weight=0.5"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Small models with every shape, and the recipe."""
    write_recipe(three_models(tmp_path, large=(40, 64)), SWEPT)
    return tmp_path


def sweep(folder: Path, text: str = SWEPT, **wishes: object) -> RunReport:
    return mergeflow.run(write_recipe(folder, text), folder / "swept", options=options(folder, **wishes))


def alone(folder: Path, density: float, weight: float) -> dict[str, bytes]:
    """The weights of one combination, from a run of its own without a cache."""
    recipe = mergeflow.load(write_recipe(folder, SWEPT), density=density, weight=weight)
    place = folder / f"alone-{density}-{weight}"
    mergeflow.run(recipe, place, options=options(folder, cache=None, state=folder / "other"))
    return weights(place)


@pytest.mark.parametrize("cached", [True, False], ids=["a cache", "no cache"])
def test_each_candidate_is_what_its_own_run_gives(folder: Path, cached: bool) -> None:
    """Product order, the first variable slowest; a folder for each; the bytes of a run with those values."""
    report = sweep(folder, **({} if cached else {"cache": None}))
    assert [candidate.name for candidate in report.candidates] == CANDIDATES
    assert sorted(path.name for path in (folder / "swept").iterdir()) == sorted(CANDIDATES)
    for candidate in report.candidates:
        values = {name: float(str(value)) for name, value in candidate.values.items()}
        assert weights(folder / "swept" / candidate.name) == alone(folder, values["density"], values["weight"])


@pytest.mark.parametrize("cached", [True, False], ids=["a cache", "no cache"])
def test_shared_statistics_are_computed_once(folder: Path, cached: bool) -> None:
    """A weight changes no threshold: candidates that differ by it alone compute theirs once between them."""
    one = mergeflow.run(
        mergeflow.load(write_recipe(folder, SWEPT), density=0.5, weight=1),
        folder / "alone",
        options=options(folder, cache=None, state=folder / "other"),
    )
    report = sweep(folder, **({} if cached else {"cache": None}))
    assert report.statistics["computed"] < 4 * one.statistics["computed"]
    assert all(candidate.shared_statistics > 0 for candidate in report.candidates[1:])
    assert report.candidates[0].shared_statistics == 0


def test_again_everything_is_kept(folder: Path) -> None:
    """A second run of the sweep reads nothing and writes nothing."""
    sweep(folder)
    again = sweep(folder)
    assert (again.bytes.read, again.bytes.written, again.bytes.cache_read) == (0, 0, 0)
    assert again.tensors.kept == again.tensors.total


def test_an_interrupted_sweep_goes_on(folder: Path) -> None:
    """Candidates that were finished are kept; the others are made, and all are what they would have been."""
    begun: list[object] = []

    def interrupt(event: object) -> None:
        begun.append(event)
        if type(event).__name__ == "CandidateStarted" and sum(type(it) is type(event) for it in begun) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mergeflow.run(folder / "recipe.yaml", folder / "swept", options=options(folder), listen=interrupt)
    assert {path.name for path in (folder / "swept").iterdir() if path.is_dir()} == set(CANDIDATES[:2])
    report = sweep(folder)
    kept = [candidate.report.tensors.kept for candidate in report.candidates if candidate.report is not None]
    assert kept[0] == kept[1] == report.tensors.total // 4
    assert weights(folder / "swept" / CANDIDATES[3]) == alone(folder, 0.25, 0.5)


def test_candidates_that_are_the_same_are_copied(folder: Path) -> None:
    """A variable that nothing uses makes folders of equal bytes, of which only one is computed."""
    text = (
        SWEPT.replace("sweep:", "vars: {unused: 0}\nsweep:")
        .replace("weight: [1, 0.5]", "unused: [1, 2]")
        .replace('weight: "${weight}"', "weight: 0.4")
    )
    report = sweep(folder, text)
    first, second, *_ = report.candidates
    assert weights(folder / "swept" / first.name) == weights(folder / "swept" / second.name)
    assert second.report is not None
    assert second.report.tensors.computed == 0


def test_a_candidate_that_fails_leaves_the_others(folder: Path) -> None:
    """The one whose result overflows is named; the other is written."""
    text = RECIPE.replace("steps:\n", "sweep: {strength: [1, 1.0e+9]}\nsteps:\n", 1)
    text = text.replace("    merge_method: ties\n", '    merge_method: ties\n    parameters: {lambda: "${strength}"}\n')
    write_recipe(folder, text.replace("final: {path: ./out}", "final: {path: ./out, dtype: float16}"))
    with pytest.raises(SweepError) as caught:
        mergeflow.run(folder / "recipe.yaml", folder / "swept", options=options(folder))
    assert "strength=1" in str(caught.value)
    made = [path for path in (folder / "swept").iterdir() if (path / "config.json").exists()]
    assert [path.name for path in made] == ["strength=1"]


def test_two_candidates_in_one_folder_are_refused(folder: Path) -> None:
    """A path in which only one of two swept variables stands is that of two candidates."""
    text = SWEPT.replace("path: ./out", 'path: "./out-${density}"')
    with pytest.raises((OutputError, RecipeError)):
        mergeflow.run(write_recipe(folder, text), options=options(folder))
    assert not list(folder.glob("out-*"))


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("sweep: {density: []}", "empty"),
        ("sweep: {density: [0.5, 0.5]}", "same value"),
        ("sweep: {density: 0.5}", "list"),
        ("sweep: [density]", "mapping"),
        ("sweep: {density: [0.5, {a: 1}]}", "expected a value"),
    ],
)
def test_a_sweep_that_is_none(folder: Path, section: str, words: str) -> None:
    """What is wrong with a sweep is said with its line."""
    text = SWEPT.replace("sweep: {density: [0.5, 0.25], weight: [1, 0.5]}", section).replace('"${weight}"', "0.5")
    with pytest.raises(RecipeError) as caught:
        mergeflow.load(write_recipe(folder, text))
    assert any(words in problem.message and problem.position is not None for problem in caught.value.problems), [
        str(problem) for problem in caught.value.problems
    ]


def test_the_command_line_sweeps(folder: Path) -> None:
    """`a,b` gives a variable several values, one value ends its sweep, and quotes keep a comma."""
    path = write_recipe(folder, SWEPT)
    assert len(mergeflow.load(path, density="0.1,0.2,0.3").candidates) == 6
    assert len(mergeflow.load(path, density=0.5).candidates) == 2
    assert not mergeflow.load(path, density=0.5, weight=1).candidates
    assert len(mergeflow.load(path, density=mergeflow.Sweep(0.1, 0.2), weight=1).candidates) == 2


def test_a_plan_of_a_sweep_writes_nothing(folder: Path) -> None:
    """The plan has a row for each candidate, and leaves no folder."""
    before = sorted(path.name for path in folder.iterdir())
    made = mergeflow.plan(folder / "recipe.yaml", folder / "swept", options=replace(options(folder), workers=1))
    assert len(made.candidates) == 4  # type: ignore[union-attr]
    assert sorted(path.name for path in folder.iterdir()) == before
