"""mergeflow from Python: the same words as the command line's."""

from __future__ import annotations

from pathlib import Path

import pytest
from three_models import three_models
from tiny_checkpoints import raw_bytes

import mergeflow
from mergeflow.errors import RecipeError
from mergeflow.execute.events import BytesMoved, Event, PhaseFinished, PhaseStarted, TensorsDone


def test_the_public_names_are_there() -> None:
    """What `__all__` promises can be got, and nothing else by accident."""
    for name in mergeflow.__all__:
        assert getattr(mergeflow, name) is not None
    with pytest.raises(AttributeError):
        _ = mergeflow.nothing  # type: ignore[attr-defined]


def test_load_gives_variables_other_values(tmp_path: Path) -> None:
    """Keyword arguments are the variables of `--set`."""
    recipe = mergeflow.load(three_models(tmp_path) / "recipe.yaml", density=0.25, t=1)
    assert recipe.variables == {"density": 0.25, "t": 1}


def test_load_raises_every_problem_at_once(tmp_path: Path) -> None:
    """Two mistakes are two problems of one error."""
    (tmp_path / "r.yaml").write_text("mergeflow: 1\nsteps:\n  a: {merge_methd: linear}\nvars: {x: 1}\nnonsense: 2\n")
    with pytest.raises(RecipeError) as raised:
        mergeflow.load(tmp_path / "r.yaml")
    assert len([problem for problem in raised.value.problems if problem.severity == "error"]) >= 2


def test_a_listener_hears_every_tensor_and_byte(tmp_path: Path) -> None:
    """The event stream names each tensor once and sums up to what the report says."""
    folder = three_models(tmp_path)
    events: list[Event] = []
    report = mergeflow.run(folder / "recipe.yaml", folder / "out", listen=events.append)

    done = [name for event in events if isinstance(event, TensorsDone) for name in event.tensors]
    assert sorted(name for _, name in done) == sorted(report.keys)
    assert sum(event.written for event in events if isinstance(event, BytesMoved)) == report.bytes.written
    started = [event.name for event in events if isinstance(event, PhaseStarted)]
    assert (
        started
        == [event.name for event in events if isinstance(event, PhaseFinished)]
        == ["merge", "publish"]  # tasks hash what they read: nothing of the output is there yet
    )


def test_the_recipe_object_runs_like_its_file(tmp_path: Path) -> None:
    """A loaded recipe and its path make the same bytes."""
    folder = three_models(tmp_path)
    mergeflow.run(folder / "recipe.yaml", folder / "one")
    mergeflow.run(mergeflow.load(folder / "recipe.yaml"), folder / "two")
    one, two = raw_bytes(folder / "one"), raw_bytes(folder / "two")
    assert one["model.safetensors"] == two["model.safetensors"]


def test_a_report_is_plain_data(tmp_path: Path) -> None:
    """What `--report` writes has the fields scripts count on."""
    folder = three_models(tmp_path)
    report = mergeflow.run(folder / "recipe.yaml", folder / "out").to_json()
    assert {"tensors", "bytes", "seconds", "peak_rss_bytes", "keys", "outputs", "warnings"} <= report.keys()
    assert set(report["tensors"]) == {"total", "computed", "cached", "kept"}  # type: ignore[call-overload]
    assert set(report["bytes"]) == {"read", "written", "cache_read", "cache_written"}  # type: ignore[call-overload]
