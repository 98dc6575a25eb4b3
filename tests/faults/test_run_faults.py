"""What goes wrong around a run: inputs, cache and disk change under it, another run is there, a worker dies.

Either the run ends with the right bytes, or it fails with one clear message and the earlier output is as it was.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from dask_cluster import dask_cluster
from safetensors.torch import load_file, save_file
from three_steps import CACHED, RECIPE, options, three_models, weights, write_recipe
from tiny_checkpoints import raw_bytes

import mergeflow
from mergeflow.errors import OutputError, RunError
from mergeflow.execute.cache_full import CacheFull
from mergeflow.execute.events import Event, PhaseStarted, TensorsDone
from mergeflow.workflow.report import RunReport

ROOT = Path(__file__).parents[2]
OTHER = RECIPE.replace("[0.1, 0.5, 1]", "[0.2, 0.4, 0.6]").replace("[0.2, 0.9]", "[0.3, 0.8]")


@dataclass
class Once:
    """A listener that does something at the first event of a kind."""

    kind: type[Event]
    action: Callable[[], object]
    done: list[object] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        if isinstance(event, self.kind) and not self.done:
            self.done.append(event)
            self.action()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Models of several tasks, a recipe, and an earlier output of another recipe."""
    three_models(tmp_path)
    mergeflow.run(write_recipe(tmp_path, OTHER), options=options(tmp_path, cache=tmp_path / "earlier-cache"))
    write_recipe(tmp_path)
    return tmp_path


def run(folder: Path, listen: Callable[[Event], None] = lambda event: None, **wishes: object) -> RunReport:
    """One task at a time, so that what happens at an event happens between two of them."""
    return mergeflow.run(folder / "recipe.yaml", options=options(folder, **{"workers": 1, **wishes}), listen=listen)


def undisturbed(folder: Path) -> dict[str, bytes]:
    """The weights of the recipe from a run to which nothing happens."""
    mergeflow.run(folder / "recipe.yaml", folder / "undisturbed", options=options(folder, cache=None))
    return weights(folder / "undisturbed")


def expect_failure(
    folder: Path, message: str, listen: Callable[[Event], None] = lambda event: None, **wishes: object
) -> None:
    """The run raises a RunError that says `message`; the earlier output, and nothing else, is there."""
    before = raw_bytes(folder / "out")
    with pytest.raises(RunError, match=message) as caught:
        run(folder, listen, **wishes)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    assert raw_bytes(folder / "out") == before


def replace_by_another(file: Path) -> None:
    """What an editor or a download does: another file under the same name."""
    save_file({name: value * 2 for name, value in load_file(file).items()}, file.with_suffix(".new"))
    os.replace(file.with_suffix(".new"), file)


def overwrite_in_place(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.seek(-64, os.SEEK_END)
        opened.write(bytes(64))


def cut_short(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize("memory", [None, 1])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replace_by_another, "code/model.safetensors was replaced or changed"),
        (overwrite_in_place, "code/model.safetensors was replaced or changed"),
        (cut_short, "code/model.safetensors (was replaced or changed|became shorter)"),
        (os.unlink, "cannot read .*code/model.safetensors: No such file"),
    ],
    ids=["replaced", "overwritten", "cut short", "deleted"],
)
def test_an_input_changes_while_it_is_merged(
    folder: Path, change: Callable[[Path], None], message: str, memory: int | None
) -> None:
    """An input that is replaced, overwritten, cut or deleted in the middle of a run ends it; the old output stays."""
    listen = Once(TensorsDone, lambda: change(folder / "code" / "model.safetensors"))
    expect_failure(folder, message, listen, memory=memory)
    assert listen.done


def test_an_input_changes_after_it_was_hashed(folder: Path) -> None:
    """An input replaced between hashing and merging is noticed before a byte of it is used."""
    listen = Once(PhaseStarted, lambda: replace_by_another(folder / "math" / "model.safetensors"))
    expect_failure(folder, "math/model.safetensors was replaced", listen)


def test_the_run_goes_on_once_the_input_is_back(folder: Path) -> None:
    """After a run that failed for its input, a run with the input in place gives what it should."""
    file = folder / "code" / "model.safetensors"
    expect_failure(folder, "cannot read", Once(TensorsDone, lambda: file.rename(folder / "away")))
    (folder / "away").rename(file)
    run(folder)
    assert weights(folder / "out") == undisturbed(folder)


@pytest.mark.parametrize("moment", [PhaseStarted, TensorsDone])
@pytest.mark.parametrize("memory", [None, 1])
def test_the_cache_is_deleted_while_it_is_filled(folder: Path, moment: type[Event], memory: int | None) -> None:
    """A cache folder that vanishes while values are put into it costs them, and no byte of the output."""
    write_recipe(folder, CACHED)
    listen = Once(moment, lambda: shutil.rmtree(folder / "cache", ignore_errors=True))
    run(folder, listen, memory=memory)
    assert listen.done
    assert weights(folder / "out") == undisturbed(folder)


@pytest.mark.parametrize("moment", [PhaseStarted, TensorsDone])
def test_the_cache_is_deleted_while_it_is_read(folder: Path, moment: type[Event]) -> None:
    """A cache folder that vanishes after a run has counted on it: what it held is computed again, with a warning."""
    write_recipe(folder, CACHED)
    run(folder)
    write_recipe(folder, CACHED.replace("[0.1, 0.5, 1]", "0.3").replace("[0.2, 0.9]", "0.4"))
    report = run(folder, Once(moment, lambda: shutil.rmtree(folder / "cache")))
    assert any("it is computed again" in warning for warning in report.warnings)
    assert weights(folder / "out") == undisturbed(folder)


def full_disk(*_: object, **__: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


@dataclass
class FillingDisk:
    """`os.pwrite` on a disk that is full after so many bytes, and takes what fits of the block that does not."""

    room: int
    write: Callable[[int, memoryview, int], int] = os.pwrite

    def __call__(self, descriptor: int, block: memoryview, offset: int) -> int:
        if self.room == 0:
            full_disk()
        fits = memoryview(block)[: self.room]
        self.room -= len(fits)
        return self.write(descriptor, fits, offset)


@pytest.mark.parametrize("memory", [None, 1])
@pytest.mark.parametrize("room", [0, 100_003, 3_000_001])
def test_the_disk_fills_up(folder: Path, monkeypatch: pytest.MonkeyPatch, memory: int | None, room: int) -> None:
    """ENOSPC in the middle of a shard or of a scratch file says that the disk is full, and leaves no shard half."""
    monkeypatch.setattr(os, "pwrite", FillingDisk(room))
    expect_failure(folder, "the disk is full: cannot write .*free some space and run again", memory=memory)
    monkeypatch.undo()
    run(folder)
    assert weights(folder / "out") == undisturbed(folder)


def test_a_disk_that_takes_little_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes that take only part of a block, as the system may, are continued: in shards and in scratch files."""
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, block, offset: write(descriptor, block[:70_001], offset))
    run(folder, memory=1)
    monkeypatch.undo()
    assert weights(folder / "out") == undisturbed(folder)


def test_a_file_system_that_gives_little_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads that bring only part of a block are continued: of inputs and of scratch files."""
    read = os.preadv
    monkeypatch.setattr(os, "preadv", lambda descriptor, into, offset: read(descriptor, [into[0][:70_001]], offset))
    run(folder, memory=1, cache=None)
    monkeypatch.undo()
    assert weights(folder / "out") == undisturbed(folder)


def test_an_input_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read error of the disk names the input."""

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    expect_failure(folder, "cannot read .*model.safetensors: Input/output error")


@pytest.mark.parametrize("text", [RECIPE, CACHED], ids=["records", "tensors"])
def test_the_disk_of_the_cache_fills_up(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Where ENOSPC is all that a cache says, nothing is kept; the run goes on, and says so once."""
    write_recipe(folder, text)
    with monkeypatch.context() as patched:
        patched.setattr("mergeflow.cache.store.open", full_disk, raising=False)
        report = run(folder)
    assert [warning for warning in report.warnings if "disk is full" in warning] == [CacheFull.message]
    assert weights(folder / "out") == undisturbed(folder)


def command(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """`mergeflow run` of the folder's recipe in a process of its own."""
    program = "from mergeflow.cli.main import main; main()"
    words = [sys.executable, "-c", program, "run", str(folder / "recipe.yaml"), *arguments, "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MERGEFLOW_HOME": str(folder / "state")}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_runs_at_one_output(folder: Path) -> None:
    """The second of two runs of one output is refused, exit 1, and the first one goes on as if nothing were."""
    said: list[tuple[int, str]] = []

    def second() -> None:
        other = command(folder, "--cache", str(folder / "cache"))
        _, errors = other.communicate()
        said.append((other.returncode, errors))
        with pytest.raises(OutputError, match="another run is writing this output"):
            run(folder)

    run(folder, Once(TensorsDone, second))
    [(code, errors)] = said
    assert code == 1
    assert "another run is writing this output" in errors
    assert weights(folder / "out") == undisturbed(folder)


def test_two_processes_at_one_cache(folder: Path) -> None:
    """Two processes that make the same model at once, with one cache, both make it, and the cache is sound."""
    write_recipe(folder, CACHED)
    places = [folder / "one", folder / "two"]
    running = [command(folder, str(place), "--cache", str(folder / "cache")) for place in places]
    said = [process.communicate()[1] for process in running]
    assert [(process.returncode, words) for process, words in zip(running, said, strict=True)] == [(0, ""), (0, "")]
    expected = undisturbed(folder)
    assert [weights(place) for place in places] == [expected, expected]
    report = mergeflow.run(folder / "recipe.yaml", folder / "three", options=options(folder))
    assert (report.statistics["computed"], report.warnings) == (0, ())
    assert weights(folder / "three") == expected


def test_a_worker_dies(folder: Path, tmp_path: Path) -> None:
    """A worker that is killed with tasks in its hands: they run elsewhere, and no byte differs."""
    with dask_cluster(tmp_path / "cluster") as cluster:
        victim = cluster.workers[0]
        # Halted before the tasks are dealt out, it gets its share and holds it until the other one has done one.
        halt = Once(PhaseStarted, lambda: victim.send_signal(signal.SIGSTOP))
        kill = Once(TensorsDone, victim.kill)
        run(folder, lambda event: (halt(event), kill(event)), scheduler=cluster.address)  # type: ignore[arg-type]
        assert victim.wait() == -signal.SIGKILL
    assert weights(folder / "out") == undisturbed(folder)


def test_a_task_fails_on_a_cluster(folder: Path, tmp_path: Path) -> None:
    """An input deleted under a cluster's workers is reported as from here, and the next run finds no trace of it."""
    with dask_cluster(tmp_path / "cluster") as cluster:
        file = folder / "code" / "model.safetensors"
        take = Once(PhaseStarted, lambda: file.rename(folder / "away"))
        expect_failure(folder, "cannot read .*code/model.safetensors", take, scheduler=cluster.address)
        (folder / "away").rename(file)
        run(folder, scheduler=cluster.address)
    assert weights(folder / "out") == undisturbed(folder)


def test_the_scheduler_dies(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster whose scheduler is killed in the middle of a run ends it with an error instead of waiting for ever."""
    monkeypatch.setattr("mergeflow.execute.schedule.CONNECT_SECONDS", 3.0)  # also how long a lost one is looked for
    with dask_cluster(tmp_path / "cluster") as cluster:
        cluster.workers[0].send_signal(signal.SIGSTOP)  # it keeps its share, so that the run cannot be over before
        try:
            kill = Once(TensorsDone, cluster.scheduler.kill)
            expect_failure(folder, "the Dask scheduler was lost", kill, scheduler=cluster.address)
        finally:
            cluster.workers[0].send_signal(signal.SIGCONT)
    run(folder)
    assert weights(folder / "out") == undisturbed(folder)


def test_no_cluster_answers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address at which there is no scheduler is named."""
    monkeypatch.setattr("mergeflow.execute.schedule.CONNECT_SECONDS", 0.2)
    expect_failure(folder, "no Dask scheduler answers at tcp://127.0.0.1:9", scheduler="tcp://127.0.0.1:9")


SUM = """\
mergeflow: 1
steps:
  sum:
    merge_method: linear
    models:
      - {model: ./base, parameters: {weight: WEIGHT}}
      - {model: ./math, parameters: {weight: 1}}
    parameters: {normalize: false}
outputs:
  sum: {path: ./out}
"""


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    """fp16 models, whose sum with a large weight overflows."""
    return three_models(tmp_path, torch.float16, large=(40, 64))


@pytest.mark.parametrize("memory", [None, 1])
def test_a_new_infinity_is_an_error(sums: Path, memory: int | None) -> None:
    """A sum that overflows the format it is stored in fails the run, naming tensor and step, unless it is allowed."""
    write_recipe(sums, SUM.replace("WEIGHT", "1"))
    run(sums)
    write_recipe(sums, SUM.replace("WEIGHT", "1.0e+6"))
    expect_failure(
        sums, r"model\.\S+ has a NaN or infinity at element \d+ that none of its inputs had; .* step sum", memory=memory
    )
    report = run(sums, memory=memory, allow_non_finite=True)
    assert any("that none of its inputs had" in warning for warning in report.warnings)


def test_allow_nonfinite_on_the_command_line(sums: Path) -> None:
    """The same from the command line: exit 3, and 0 with --allow-nonfinite."""
    write_recipe(sums, SUM.replace("WEIGHT", "1.0e+6"))
    refused = command(sums, "--no-cache")
    assert "that none of its inputs had" in refused.communicate()[1]
    allowed = command(sums, "--no-cache", "--allow-nonfinite")
    assert "that none of its inputs had" in allowed.communicate()[1]
    assert (refused.returncode, allowed.returncode) == (3, 0)


def poison(folder: Path, element: int) -> None:
    """A NaN in one of math's tensors."""
    file = folder / "math" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.down_proj.weight"].view(-1)[element] = float("nan")
    save_file(tensors, file)


@pytest.mark.parametrize("memory", [None, 1])
@pytest.mark.parametrize("cache", ["auto", "always"])
def test_an_inherited_nan_is_a_warning(tmp_path: Path, memory: int | None, cache: str) -> None:
    """A NaN that an input has is carried along with a warning, whichever block it is in, cached or not."""
    three_models(tmp_path)
    poison(tmp_path, 300_000)
    write_recipe(tmp_path, RECIPE.replace("  skills:\n", f"  skills:\n    cache: {cache}\n"))
    for _ in range(2):
        report = run(tmp_path, memory=memory)
        assert [warning for warning in report.warnings if "as its inputs have" in warning] == list(report.warnings)
        assert len(report.warnings) == 1
        assert "model.layers.1.mlp.down_proj.weight" in report.warnings[0]
        shutil.rmtree(tmp_path / "out")


def test_a_merge_that_changes_nothing(sums: Path) -> None:
    """An output that is, byte for byte, one of its inputs is said to be; one that differs in a tensor is not."""
    write_recipe(sums, SUM.replace("WEIGHT", "0"))
    report = run(sums)
    assert report.warnings == ("the output sum is identical to ./math: the merge changed nothing",)
    write_recipe(sums, SUM.replace("WEIGHT", "[0, 0, 1]"))
    assert run(sums).warnings == ()
