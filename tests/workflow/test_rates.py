"""The rates of a machine: measured, remembered, believed only when they can be."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pytest

from mergeflow.cache.store import Cache
from mergeflow.graph.policy import NOMINAL, Rates
from mergeflow.workflow import keeping
from mergeflow.workflow.keeping import SECONDS_AT_STAKE, circumstances
from mergeflow.workflow.options import Options
from mergeflow.workflow.rates import DAYS, MOST_REMEMBERED, measure, place_of, remember, remembered

TODAY = date(2026, 11, 24)
MEASURED = replace(NOMINAL, write=2.5e8, measured=TODAY.isoformat())


def test_a_measurement_is_within_reason_and_leaves_nothing(tmp_path: Path) -> None:
    """Every rate is a positive number; the trial entries are gone, and none of them was ever an entry of the cache."""
    model = tmp_path / "model.safetensors"
    model.write_bytes(bytes(9 << 20))
    cache = Cache(tmp_path / "cache")
    rates = measure(cache, model, TODAY)
    assert rates is not None
    assert rates.measured == "2026-11-24"
    assert min(rates.write, rates.read, rates.load) >= 1e5
    assert min(rates.arithmetic, rates.entry_write, rates.entry_read) > 0
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != "CACHEDIR.TAG"]


@pytest.mark.parametrize("model", [None, "small", "missing"])
def test_models_too_small_to_measure_count_as_read_like_entries(tmp_path: Path, model: str | None) -> None:
    """A few bytes say nothing of a disk."""
    (tmp_path / "small").write_bytes(b"few")
    rates = measure(Cache(tmp_path / "cache"), tmp_path / model if model else None, TODAY)
    assert rates is not None
    assert rates.load == rates.read


def test_a_cache_that_cannot_be_written_has_no_rates(tmp_path: Path) -> None:
    """It is no error: nominal rates hold, and whoever writes will say what is wrong."""
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert measure(Cache(tmp_path / "cache"), None, TODAY) is None


def test_a_full_disk_has_no_rates_and_keeps_no_rubbish(tmp_path: Path) -> None:
    """The trial is removed when it fails in the middle."""
    cache = Cache(tmp_path / "cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fdatasync", _fail)
        assert measure(cache, None, TODAY) is None
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != "CACHEDIR.TAG"]


def _fail(file: int) -> None:
    raise OSError(28, "No space left on device")


def test_rates_are_remembered_for_a_month(tmp_path: Path) -> None:
    """For their place alone; a clock that went backwards makes them doubtful."""
    remember(tmp_path, "here", MEASURED)
    assert remembered(tmp_path, "here", TODAY) == MEASURED
    assert remembered(tmp_path, "here", TODAY + timedelta(days=DAYS)) == MEASURED
    assert remembered(tmp_path, "here", TODAY + timedelta(days=DAYS + 1)) is None
    assert remembered(tmp_path, "here", TODAY - timedelta(days=1)) is None
    assert remembered(tmp_path, "there", TODAY) is None


def test_places_do_not_pile_up(tmp_path: Path) -> None:
    """The oldest go when there are many; the one just measured never."""
    for number in range(MOST_REMEMBERED + 5):
        day = (TODAY - timedelta(days=number)).isoformat()
        remember(tmp_path, f"place {number}", replace(MEASURED, measured=day))
    places = json.loads((tmp_path / "rates.json").read_text())["places"]
    assert len(places) == MOST_REMEMBERED
    assert {"place 0", f"place {MOST_REMEMBERED + 4}"} <= set(places)


def _edited(change: Callable[[dict[str, object]], object]) -> str:
    entry: dict[str, object] = {
        "write": 1e9, "read": 1e9, "load": 1e9, "arithmetic": 1.0, "entry_write": 1e-4, "entry_read": 1e-4,
        "measured": TODAY.isoformat(),
    }  # fmt: skip
    change(entry)
    return json.dumps({"version": 1, "places": {"here": entry}})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"version": 1}',
        '{"version": 2, "places": {}}',
        '{"version": 1, "places": []}',
        '{"version": 1, "places": {"here": 7}}',
        "[" * 100_000,
        _edited(lambda entry: entry.pop("read")),
        _edited(lambda entry: entry.update(more=1)),
        _edited(lambda entry: entry.update(read="fast")),
        _edited(lambda entry: entry.update(read=True)),
        _edited(lambda entry: entry.update(read=0.0)),
        _edited(lambda entry: entry.update(read=-1e9)),
        _edited(lambda entry: entry.update(read=float("nan"))),
        _edited(lambda entry: entry.update(read=float("inf"))),
        _edited(lambda entry: entry.update(read=10**400)),
        _edited(lambda entry: entry.update(measured=7)),
        _edited(lambda entry: entry.update(measured="yesterday")),
    ],
)
def test_a_damaged_memory_is_none(tmp_path: Path, text: str) -> None:
    """Whatever stands in the file, the worst that happens is measuring again."""
    (tmp_path / "rates.json").write_text(text)
    assert remembered(tmp_path, "here", TODAY) is None
    remember(tmp_path, "here", MEASURED)
    assert remembered(tmp_path, "here", TODAY) == MEASURED


def test_the_edited_entry_would_be_good_without_the_edit(tmp_path: Path) -> None:
    """So that each of the edits above is what damages it."""
    (tmp_path / "rates.json").write_text(_edited(lambda entry: None))
    assert remembered(tmp_path, "here", TODAY) is not None


def test_a_state_folder_that_cannot_be_written_is_no_reason_to_fail(tmp_path: Path) -> None:
    """What cannot be remembered is measured again."""
    (tmp_path / "state").write_text("a file")
    remember(tmp_path / "state", "here", MEASURED)
    assert remembered(tmp_path / "state", "here", TODAY) is None


def test_a_place_is_a_machine_and_two_devices(tmp_path: Path) -> None:
    """A folder that is not there yet is on the device of the one above it."""
    assert place_of(tmp_path / "not" / "yet", tmp_path) == place_of(tmp_path, tmp_path / "model")
    assert place_of(tmp_path, None) != place_of(tmp_path, tmp_path)


class Machine:
    """Counts how often it is measured."""

    def __init__(self) -> None:
        self.measured = 0

    def measure(self, cache: Cache, model: Path | None, today: date) -> Rates:
        self.measured += 1
        return replace(MEASURED, measured=today.isoformat())


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(keeping, "measure", made.measure)
    return made


def told(folder: Path, seconds: float, *, is_run: bool) -> Rates:
    """The rates that a plan or a run of a recipe judges by when so many seconds are at stake."""
    from mergeflow.graph.nodes import Graph
    from mergeflow.graph.values import Compiled

    nothing = Compiled(Graph(), {}, (), (), {})
    options = Options(cache=folder / "cache", state=folder / "state", device="cpu")
    return circumstances(options, nothing, [], may_measure=is_run).rates(lambda: seconds)


def test_a_plan_never_measures_and_a_run_only_when_seconds_hang_on_it(tmp_path: Path, machine: Machine) -> None:
    """Nominal until then; what the run found is what later plans and runs use."""
    assert told(tmp_path, 1000.0, is_run=False) == NOMINAL
    assert told(tmp_path, SECONDS_AT_STAKE / 2, is_run=True) == NOMINAL
    assert machine.measured == 0
    assert told(tmp_path, SECONDS_AT_STAKE, is_run=True).write == MEASURED.write
    assert told(tmp_path, 0.0, is_run=False).write == MEASURED.write
    assert told(tmp_path, 1000.0, is_run=True).write == MEASURED.write
    assert machine.measured == 1
