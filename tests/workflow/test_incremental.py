"""A changed parameter costs the tensors it changes: shards, inodes, copies, progress, interrupts, resuming."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open
from three_steps import RECIPE, options, three_models, weights, write_recipe

import mergeflow
from mergeflow.errors import RunError
from mergeflow.execute.events import BytesMoved, Event, PhaseStarted, TensorsDone
from mergeflow.workflow.report import RunReport

# About 1.4 MB of tensors to a layer: four shards.
SHARDED = RECIPE.replace("./out", "./out, max_shard_size: 2MB")
# The same, but for the MLP of the last layer.
CHANGED = SHARDED.replace("- {filter: mlp,", "- {filter: layers.2.mlp, value: 0.35}\n        - {filter: mlp,")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Models, and an output of several shards."""
    three_models(tmp_path)
    mergeflow.run(write_recipe(tmp_path, SHARDED), options=options(tmp_path))
    return tmp_path


def run(
    folder: Path, recipe: str = CHANGED, listen: Callable[[Event], None] = lambda _: None, **how: object
) -> RunReport:
    return mergeflow.run(write_recipe(folder, recipe), options=options(folder, **how), listen=listen)


def fresh(folder: Path, recipe: str = CHANGED) -> dict[str, bytes]:
    """The weights from a run to which nothing is known."""
    mergeflow.run(write_recipe(folder, recipe), folder / "fresh", options=options(folder, cache=None))
    return weights(folder / "fresh")


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of the last write of every shard."""
    found = {path.name: path.stat() for path in (folder / "out").glob("*.safetensors")}
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in found.items()}


def test_only_shards_with_a_changed_tensor_are_rebuilt(folder: Path) -> None:
    """One layer's parameter: its tensors are computed, its shards are written, all others are the files they were."""
    before = identities(folder)
    report = run(folder)
    states = report.outputs[0].shards
    assert len(states) >= 4
    assert sorted(set(states.values())) == ["kept", "rebuilt"]
    after = identities(folder)
    assert {name for name, state in states.items() if state == "kept"} == {
        name for name in before if before[name] == after[name]
    }
    computed = {name for name, fate in report.fates.items() if fate == "computed"}
    assert computed == {"model.layers.2.mlp.down_proj.weight", "model.layers.2.mlp.gate.bias"}
    assert weights(folder / "out") == fresh(folder)


def test_in_place_every_shard_stays_its_file(folder: Path) -> None:
    """With in_place the shards are the same files, the bytes those of a run from nothing, and the next run keeps all."""
    before = identities(folder)
    report = run(folder, in_place=True)
    assert sorted(set(report.outputs[0].shards.values())) == ["kept", "patched"]
    assert {name: inode for name, (inode, _) in identities(folder).items()} == {n: i for n, (i, _) in before.items()}
    assert weights(folder / "out") == fresh(folder)
    assert set(run(folder).outputs[0].shards.values()) == {"kept"}


def test_in_place_is_refused_with_a_reason_where_it_would_change_another_file(folder: Path) -> None:
    """A shard with a second name is rebuilt, the warning says why, and the other name keeps its bytes."""
    shards = run(folder, SHARDED).outputs[0].shards
    for number, name in enumerate(shards):
        os.link(folder / "out" / name, folder / f"link-{number}")
    linked = {path.name: path.read_bytes() for path in folder.glob("link-*")}
    report = run(folder, in_place=True)
    assert "patched" not in report.outputs[0].shards.values()
    [warning] = [it for it in report.warnings if "in place" in it]
    assert "second name" in warning
    assert "\n" not in warning
    assert {path.name: path.read_bytes() for path in folder.glob("link-*")} == linked
    assert weights(folder / "out") == fresh(folder)


def test_two_outputs_each_decide_for_themselves(folder: Path) -> None:
    """One output is patched in place while another, which is new, is written in the usual way."""
    report = run(folder, CHANGED.rstrip() + "\n  skills: {path: ./skills}\n", in_place=True)
    states = {output.step: set(output.shards.values()) for output in report.outputs}
    assert "patched" in states["final"]
    assert states["skills"] == {"rebuilt"}


def test_copies_count_as_progress(folder: Path) -> None:
    """What is copied by the kernel is part of what the progress bar waits for, and is told as it arrives."""
    events: list[Event] = []
    report = run(folder, listen=events.append)
    written = sum(event.written for event in events if isinstance(event, BytesMoved))
    [phase] = [event for event in events if isinstance(event, PhaseStarted) and event.name == "merge"]
    rebuilt = [name for name, state in report.outputs[0].shards.items() if state == "rebuilt"]
    data = sum(data_bytes(folder / "out" / name) for name in rebuilt)
    assert written == data > report.bytes.written
    assert phase.total_bytes >= data


def data_bytes(path: Path) -> int:
    with path.open("rb") as file:
        return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")


def test_a_copy_that_fails_ends_the_run(folder: Path) -> None:
    """An earlier shard that vanishes before it is copied: one clear error, and no thread goes on."""
    before = weights(folder / "out")

    def listen(event: Event) -> None:
        if isinstance(event, PhaseStarted) and event.name == "merge":
            for path in (folder / "out").glob("*.safetensors"):
                path.unlink()

    with pytest.raises(RunError, match=r"cannot copy .*No such file"):
        run(folder, listen=listen)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("copy ")]
    run(folder, SHARDED)
    assert weights(folder / "out") == before


def test_an_interrupt_while_copying_ends_the_run(folder: Path) -> None:
    """What a listener raises in the middle of a copy (ctrl-C, say) ends tasks and copying; the output is untouched."""
    before = weights(folder / "out")

    def listen(event: Event) -> None:
        if isinstance(event, BytesMoved) and threading.current_thread().name.startswith("copy "):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folder, listen=listen)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("copy ")]
    assert weights(folder / "out") == before
    run(folder)
    assert weights(folder / "out") == fresh(folder)


def test_a_failed_task_ends_the_copying(folder: Path) -> None:
    """A task that fails leaves no thread that copies into a staging folder which is given up."""

    def listen(event: Event) -> None:
        if isinstance(event, TensorsDone):
            raise RunError("this task failed")

    with pytest.raises(RunError, match="this task failed"):
        run(folder, listen=listen)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("copy ")]


@pytest.mark.parametrize("in_place", [False, True])
def test_less_than_a_shard_is_computed_twice(folder: Path, in_place: bool) -> None:
    """Interrupted after each of its tensors in turn, a run and the next compute each tensor once but for a shard's."""
    recipe = SHARDED.replace("[0.1, 0.5, 1]", "[0.15, 0.5, 1]").replace("[0.2, 0.9]", "[0.25, 0.8]")
    total = tensor_sizes(folder / "out")
    largest = max(sum(sizes.values()) for sizes in total.values())
    size_of = {name: size for sizes in total.values() for name, size in sizes.items()}
    number, finished = 0, False
    while not finished:
        number += 1
        run(folder, SHARDED)
        computed: list[str] = []

        def listen(event: Event, computed: list[str] = computed, number: int = number) -> None:
            if isinstance(event, TensorsDone):
                computed.extend(name for _, name in event.tensors)
                if len(computed) >= number * 2:
                    raise KeyboardInterrupt

        try:
            run(folder, recipe, listen, workers=1, in_place=in_place)
            finished = True
        except KeyboardInterrupt:
            again: list[str] = []
            run(folder, recipe, lambda event, again=again: note(event, again), workers=1, in_place=in_place)
            twice = set(computed) & set(again)
            assert sum(size_of[name] for name in twice) < largest, twice
        assert number < 50
    assert number > 3
    assert weights(folder / "out") == fresh(folder, recipe)


def note(event: Event, names: list[str]) -> None:
    if isinstance(event, TensorsDone):
        names.extend(name for _, name in event.tensors)


def tensor_sizes(folder: Path) -> dict[str, dict[str, int]]:
    """Bytes of every tensor, by shard."""
    found: dict[str, dict[str, int]] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found[path.name] = {name: file.get_tensor(name).nbytes for name in file.keys()}  # noqa: SIM118
    return found
