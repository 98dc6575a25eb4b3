"""kill -9 at any moment: nothing half-written is ever seen, and the next run goes on from what was complete."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from three_steps import CACHED, three_models, write_recipe

TESTS = Path(__file__).parents[1]

# Shards of one large tensor each; a step in the cache, so that tensors on their way there are killed too.
SHARDED = CACHED.replace("./out", "./out, max_shard_size: 2MB")
# The same with a second output, whose folder is its own.
TWO = SHARDED.rstrip() + "\n  skills: {path: ./skills, max_shard_size: 2MB}\n"
# Fifty in all, with those that each operation of the disk is killed at (tests/output).
KILLS = {"usual": 18, "in-place": 18, "edited": 14}


def other(recipe: str, t: str, more: str) -> str:
    return recipe.replace("[0.1, 0.5, 1]", t).replace("[0.2, 0.9]", more)


@pytest.fixture(scope="module", params=KILLS)
def scenario(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def kills(tmp_path_factory: pytest.TempPathFactory, scenario: str) -> list[dict[str, dict[str, object]]]:
    """What became of each killed run of a merge of three models of 10 MB."""
    folder = three_models(tmp_path_factory.mktemp("killed"), large=(500, 1024), layers=4)
    recipe = TWO if scenario == "edited" else SHARDED
    write_recipe(folder, recipe)
    # In place, only the MLPs change: other tensors, and the shards they are alone in, stay as they are.
    write_recipe(folder, other(recipe, "[0.1, 0.5, 1]" if scenario == "in-place" else "0.7", "0.4"), "earlier.yaml")
    write_recipe(folder, other(recipe, "0.3", "[0.2, 0.9]"), "after.yaml")
    done = subprocess.run(
        [sys.executable, TESTS / "faults" / "killing_merges.py", folder, str(KILLS[scenario]), scenario],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_kills_hit(kills: list[dict[str, dict[str, object]]], scenario: str) -> None:
    """Many of the runs were killed before their end, some of them with files complete and some without."""
    interrupted = [kill for kill in kills if kill["killed"] and set(kill["found"].values()) != {"new"}]
    assert len(interrupted) >= 0.4 * len(kills)
    complete = [any(kill["complete"].values()) for kill in interrupted]
    assert any(complete)
    assert not all(complete)
    files = [name for kill in interrupted for names in kill["complete"].values() for name in names]
    assert all(name.endswith(".patch") == (scenario == "in-place") for name in files)


def test_nothing_half_written_is_seen(kills: list[dict[str, dict[str, object]]], scenario: str) -> None:
    """After every kill an output is what it was or the new one, whole; patched in place, or it says so itself."""
    for kill in kills:
        allowed = {"new", "earlier" if kill["had_earlier"] else "absent"}
        allowed |= {"between"} if scenario == "in-place" else set()
        assert set(kill["found"].values()) <= allowed, kill


def test_the_next_run_gives_the_same_bytes(kills: list[dict[str, dict[str, object]]], scenario: str) -> None:
    """Run again, or another recipe run, every output ends as from an uninterrupted run, and nothing is beside it."""
    wanted = "after" if scenario == "edited" else "new"
    for kill in kills:
        assert set(kill["after_rerun"].values()) == {wanted}, kill
        assert kill["leftovers"] == [], kill


def test_complete_shards_are_not_computed_twice(kills: list[dict[str, dict[str, object]]], scenario: str) -> None:
    """What was complete before the kill is used; only the others are written."""
    for kill in kills:
        report = kill["report"]
        for step, states in report["shards"].items():
            if kill["found"][step] in ("new", "between") and scenario != "edited":
                assert set(states.values()) == {"kept"}, kill
            elif scenario == "usual":
                resumed = sorted(name for name, state in states.items() if state == "resumed")
                assert resumed == kill["complete"][step], kill
        complete = {f"{step}/{name}" for step, names in kill["complete"].items() for name in names}
        rebuilt = sum(
            size
            for step, sizes in report["sizes"].items()
            for name, size in sizes.items()
            if report["shards"][step][name] in ("rebuilt", "patched") and f"{step}/{name}.patch" not in complete
        )
        assert report["written"] <= rebuilt, kill
