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
KILLS = 14

# Shards of one large tensor each; a step in the cache, so that tensors on their way there are killed too.
SHARDED = CACHED.replace("./out", "./out, max_shard_size: 4MB")


@pytest.fixture(scope="module")
def kills(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """What became of each killed run of a merge of three models of 20 MB."""
    folder = three_models(tmp_path_factory.mktemp("killed"), large=(1000, 1024), layers=4)
    write_recipe(folder, SHARDED)
    write_recipe(folder, SHARDED.replace("[0.1, 0.5, 1]", "0.7").replace("[0.2, 0.9]", "0.4"), "earlier.yaml")
    done = subprocess.run(
        [sys.executable, TESTS / "faults" / "killing_merges.py", folder, str(KILLS)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_kills_hit(kills: list[dict[str, object]]) -> None:
    """Most of the runs were killed before their end, some of them with shards complete and some without."""
    interrupted = [kill for kill in kills if kill["killed"] and kill["found"] != "new"]
    assert len(interrupted) >= 10
    assert any(kill["complete"] for kill in interrupted)
    assert not all(kill["complete"] for kill in interrupted)


def test_nothing_half_written_is_seen(kills: list[dict[str, object]]) -> None:
    """After every kill the output is what it was, absent or the earlier one, or it is the new one, whole."""
    for kill in kills:
        assert kill["found"] in ("new", "earlier" if kill["had_earlier"] else "absent"), kill


def test_the_next_run_gives_the_same_bytes(kills: list[dict[str, object]]) -> None:
    """Run again, every killed run ends with each file of an uninterrupted one, and nothing beside it."""
    for kill in kills:
        assert (kill["after_rerun"], kill["leftovers"]) == ("new", []), kill


def test_complete_shards_are_not_computed_twice(kills: list[dict[str, object]]) -> None:
    """Shards that were complete before the kill are resumed; only the others are written."""
    for kill in kills:
        report = kill["report"]
        assert isinstance(report, dict)
        states = report["shards"]
        if kill["complete"] is None:
            assert set(states.values()) == {"kept"}
            continue
        assert sorted(name for name, state in states.items() if state == "resumed") == kill["complete"], kill
        rebuilt = sum(size for name, size in report["sizes"].items() if states[name] == "rebuilt")
        assert report["written"] <= rebuilt, kill
