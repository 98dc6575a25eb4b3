"""What `cache: auto` keeps in a run: decided by rates alone, and without a trace in keys and bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from three_steps import let_settle, options, three_models, weights, write_recipe
from typer.testing import CliRunner

import mergeflow
from mergeflow.cache.open import open_cache
from mergeflow.cli.main import app
from mergeflow.graph.plan import Plan
from mergeflow.graph.policy import NOMINAL, Rates
from mergeflow.workflow.rates import place_of, remember

# Disks on which keeping anything pays, and on which nothing does.
FAST = replace(NOMINAL, write=1e12, read=1e12, entry_write=1e-7, entry_read=1e-7, arithmetic=1000.0)
SLOW = replace(NOMINAL, write=1e5, read=1e5)


def with_rates(folder: Path, rates: Rates) -> None:
    """This machine is as `rates` say, for caches and models in `folder`."""
    measured = replace(rates, measured=date.today().isoformat())
    remember(folder / "state", place_of(folder / "cache", folder / "base" / "model.safetensors"), measured)


def run(folder: Path, out: str, **variables: object) -> mergeflow.RunReport:
    return mergeflow.run(mergeflow.load(folder / "recipe.yaml", **variables), folder / out, options=options(folder))


def planned(folder: Path, out: str = "out") -> Plan:
    return mergeflow.plan(folder / "recipe.yaml", folder / out, options=options(folder))


def kept(folder: Path) -> dict[str, int]:
    return {step.name: step.keeping.kept for step in planned(folder).steps if step.keeping is not None}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    three_models(tmp_path, large=(64, 512), layers=1)
    write_recipe(tmp_path)
    return tmp_path


def test_what_is_kept_changes_no_key_and_no_byte(folder: Path) -> None:
    """The same recipe with all results kept, and with none: equal outputs, equal keys, equal statistics."""
    with_rates(folder, SLOW)
    without = run(folder, "without")
    with_rates(folder, FAST)
    (folder / "cache").rename(folder / "old")
    with_all = run(folder, "with")
    assert weights(folder / "with") == weights(folder / "without")
    assert with_all.keys == without.keys
    assert with_all.statistics == without.statistics
    assert with_all.bytes.cache_written > 10 * without.bytes.cache_written


def test_a_plan_says_what_the_run_then_keeps(folder: Path) -> None:
    """As many tensors are in the cache afterwards as the plan said, and what it said of their bytes is what they hold."""
    with_rates(folder, FAST)
    run(folder, "warm")  # what was never hashed has no key yet
    (folder / "cache").rename(folder / "old")
    plan = planned(folder)
    said = kept(folder)
    assert said["math_skill"] > 0
    assert said["skills"] > 0
    run(folder, "out")
    keys = [node.key for node in plan.compiled.graph if node.kind not in ("load", "statistic") and node.key]
    found = open_cache(folder / "cache").lookup(keys)
    assert len(found) == sum(said.values())


def test_what_was_kept_is_read_and_not_computed(folder: Path) -> None:
    """With the merged skills kept, another `t` of the last step reads them; the skills themselves are not needed."""
    with_rates(folder, FAST)
    run(folder, "first")
    (folder / "recipe.yaml").write_text((folder / "recipe.yaml").read_text().replace("[0.1, 0.5, 1]", "[0.3, 0.6, 1]"))
    steps = {step.name: step for step in planned(folder, "second").steps}
    assert steps["skills"].cached > 0
    assert steps["math_skill"].computed < steps["math_skill"].tensors


def test_values_that_turn_out_to_be_equal_are_written_once(folder: Path) -> None:
    """In a first run nobody knows yet that two models have a tensor in common, and so two differences."""
    for name in ("config.json", "model.safetensors"):
        (folder / "code" / name).write_bytes((folder / "math" / name).read_bytes())
    let_settle(folder)
    with_rates(folder, FAST)
    run(folder, "late")
    assert run(folder, "known").tensors.cached > 0
    assert weights(folder / "late") == weights(folder / "known")


def test_a_step_that_is_never_cached_is_not_kept_however_costly(folder: Path) -> None:
    """The rule is asked about `auto` alone."""
    with_rates(folder, FAST)
    text = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(text.replace("  skills:\n", "  skills:\n    cache: never\n"))
    assert "skills" not in kept(folder)
    assert kept(folder)["math_skill"] > 0


def test_what_is_asked_for_is_kept_however_cheap(folder: Path) -> None:
    """`always` does not ask the rule."""
    with_rates(folder, SLOW)
    assert kept(folder)["skills"] == 0
    text = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(text.replace("  skills:\n", "  skills:\n    cache: always\n"))
    (step,) = [step for step in planned(folder).steps if step.name == "skills"]
    assert step.keeping is not None
    assert step.keeping.kept == step.keeping.candidates > 0


def test_the_last_step_is_in_the_output_and_not_kept(folder: Path) -> None:
    """Unless something else reads it: here a second output of the same step's tensors does."""
    rates = replace(NOMINAL, write=2e10, read=2e10, entry_write=1e-5, entry_read=1e-6)
    with_rates(folder, rates)
    (final,) = [step for step in planned(folder).steps if step.name == "final"]
    assert final.keeping is not None
    assert (final.keeping.kept, final.keeping.is_read) == (0, False)
    (folder / "recipe.yaml").write_text(
        (folder / "recipe.yaml").read_text().replace("outputs:\n", "  again:\n    merge_method: linear\n"
        "    models: [{model: final, parameters: {weight: 1}}, {model: base, parameters: {weight: 1}}]\noutputs:\n"
        "  again: {path: ./again}\n")
    )  # fmt: skip
    plan = mergeflow.plan(folder / "recipe.yaml", options=options(folder))
    (final,) = [step for step in plan.steps if step.name == "final"]
    assert final.keeping is not None
    assert final.keeping.is_read


def test_tiny_models_keep_statistics_only(folder: Path) -> None:
    """At nominal rates nothing of some thousand elements is worth a file."""
    assert not any(kept(folder).values())


def shown(folder: Path, *more: str) -> str:
    places = ["--cache", str(folder / "cache")]
    result = CliRunner().invoke(app, ["plan", str(folder / "recipe.yaml"), str(folder / "out"), *places, *more])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_shows_decisions_and_their_numbers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line per step, and where the rates are from; `--json` has the same."""
    monkeypatch.setenv("MERGEFLOW_HOME", str(folder / "state"))
    assert "rates: nominal until a run measures" in shown(folder)
    assert "skills: keeps none: again " in shown(folder)
    assert "; only its output needs it" in shown(folder)
    with_rates(folder, FAST)
    text = shown(folder)
    assert f"rates: measured here on {date.today().isoformat()}" in text
    assert "skills: keeps " in text
    assert "keeps none: again" not in text.split("skills: ")[1].splitlines()[0]
    data = json.loads(shown(folder, "--json"))
    assert data["rates"]["write"] == FAST.write
    keeping = {step["step"]: step["keeping"] for step in data["steps"]}
    assert keeping["skills"]["kept"] > 0
    assert set(keeping["skills"]["seconds"]) == {"again", "write", "read"}


def test_without_a_cache_there_is_nothing_to_decide(folder: Path) -> None:
    """No line, no number."""
    plan = mergeflow.plan(folder / "recipe.yaml", folder / "out", options=options(folder, cache=None))
    assert all(step.keeping is None for step in plan.steps)
