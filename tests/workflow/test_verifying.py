"""An output is what its lock says, or everything that is not is named: file, key, input, tensor and element."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from three_models import RECIPE, settle, three_models
from tiny_checkpoints import llama_tensors, raw_bytes, read_model, write_model

import mergeflow
from mergeflow.cache.store import Cache
from mergeflow.errors import OutputError
from mergeflow.execute import engine
from mergeflow.execute.compared import ComparedFiles
from mergeflow.output.lock import LOCK_FILE, read_lock
from mergeflow.workflow.options import Options
from mergeflow.workflow.published import recall_folders
from mergeflow.workflow.verifying import Verification

SHARDED = RECIPE.replace("{path: ./out}", "{path: ./out, max_shard_size: 4000}")


def options(folder: Path, **wishes: object) -> Options:
    stated: dict[str, object] = {"cache": folder / "cache", "state": folder / "state", "workers": 1, "device": "cpu"}
    return Options(**(stated | wishes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models and a merge of them in three shards."""
    folder = three_models(tmp_path_factory.mktemp("made"))
    (folder / "recipe.yaml").write_text(SHARDED)
    mergeflow.run(folder / "recipe.yaml", options=options(folder))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them, and the current folder."""
    shutil.copytree(made, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    settle()
    return tmp_path / "work"


def verify(folder: Path, out: str = "out", **wishes: object) -> Verification:
    return mergeflow.verify(folder / out, options=options(folder), **wishes)  # type: ignore[arg-type]


def said(found: Verification) -> list[str]:
    return [str(fault) for fault in found.faults]


def flip(file: Path, offset: int) -> None:
    content = bytearray(file.read_bytes())
    content[offset] ^= 1
    file.write_bytes(content)


def edit_lock(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "out" / LOCK_FILE
    contents = json.loads(path.read_text())
    change(contents)
    path.write_text(json.dumps(contents))


def test_an_output_nobody_touched_is_verified(folder: Path) -> None:
    """Every key and every byte is equal, and verifying changes no file of the output and writes none to the cache."""
    before = raw_bytes(folder / "out"), raw_bytes(folder / "cache")
    found = verify(folder)
    assert (found.faults, found.missing, found.exit_code) == ((), (), 0)
    assert found.tensors == found.keys == found.bytes == 9
    assert (raw_bytes(folder / "out"), raw_bytes(folder / "cache")) == before


def test_torch_and_the_native_library_verify_alike(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the C kernels left out, the same bytes are found equal, and a flipped one is found at the same element."""
    monkeypatch.setattr(engine, "needs_torch", lambda program, device: True)
    assert verify(folder).bytes == 9
    lock = read_lock(folder / "out")
    assert lock is not None
    flip(folder / "out" / lock.shards[0].file, lock.shards[0].tensors[0].offset + 4 * 11)
    assert said(verify(folder))[-1].endswith("from element 11 on")


@pytest.mark.parametrize("element", [0, 7, -1])
def test_a_flipped_byte_is_named_by_tensor_and_element(folder: Path, element: int) -> None:
    """Whichever tensor and element: that tensor alone, from that element on."""
    lock = read_lock(folder / "out")
    assert lock is not None
    for shard in lock.shards:
        placed = shard.tensors[-1]
        count = placed.tensor.nbytes // 4
        flip(folder / "out" / shard.file, placed.offset + 4 * (element % count))
        found = verify(folder)
        named = [fault for fault in found.faults if fault.kind == "tensor"]
        assert [fault.name for fault in named] == [placed.tensor.name]
        assert f"from element {element % count} on" in named[0].message
        assert (found.exit_code, found.keys, found.bytes) == (3, 9, 8)
        flip(folder / "out" / shard.file, placed.offset + 4 * (element % count))


def test_a_byte_that_no_sample_sees_is_found_by_computing(tmp_path: Path) -> None:
    """In a tensor too large to be sampled whole, only the comparison of all bytes tells; --quick says what it skips."""
    for seed, name in enumerate(("base", "a", "b")):
        wide = torch.randn(96, 96, generator=torch.Generator().manual_seed(seed))
        write_model(tmp_path / name, llama_tensors(seed) | {"model.wide.weight": wide})
    settle()
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    mergeflow.run(tmp_path / "recipe.yaml", options=options(tmp_path))
    lock = read_lock(tmp_path / "out")
    assert lock is not None
    placed = next(it for it in lock.shards[0].tensors if it.tensor.name == "model.wide.weight")
    flip(tmp_path / "out" / lock.shards[0].file, placed.offset + 3000 * 4)
    assert verify(tmp_path, quick=True).exit_code == 0
    assert said(verify(tmp_path)) == ["model.wide.weight has other bytes than its recipe gives, from element 3000 on"]


def test_a_swapped_shard_is_named_with_its_tensors(folder: Path) -> None:
    """A shard of another merge with the same header: its sample differs, and every tensor that is not the same."""
    (folder / "other.yaml").write_text(SHARDED.replace("t: 0.4", "t: 0.6"))
    mergeflow.run(folder / "other.yaml", folder / "other", options=options(folder))
    lock = read_lock(folder / "out")
    assert lock is not None
    shard = lock.shards[1]
    shutil.copy2(folder / "other" / shard.file, folder / "out" / shard.file)
    found = verify(folder)
    assert {fault.name for fault in found.faults if fault.kind == "tensor"} == {it.tensor.name for it in shard.tensors}
    assert [fault.name for fault in found.faults if fault.kind == "shard"] == [shard.file]


def test_a_shard_that_is_cut_off_replaced_or_gone_is_named(folder: Path) -> None:
    """Missing, shorter, or with other tensors; the tensors of sound shards are still compared."""
    lock = read_lock(folder / "out")
    assert lock is not None
    files = [shard.file for shard in lock.shards]
    (folder / "out" / files[0]).unlink()
    content = (folder / "out" / files[1]).read_bytes()
    (folder / "out" / files[1]).write_bytes(content[:-1])
    shutil.copy(folder / "a" / "model.safetensors", folder / "out" / files[2])
    found = verify(folder)
    text = "\n".join(said(found))
    assert f"{files[0]} is missing" in text
    assert f"{files[1]} has {len(content) - 1} bytes instead of {len(content)}" in text
    assert f"{files[2]} has another header than was written: " in text
    assert "too many" in text
    assert (found.exit_code, found.bytes) == (3, 0)


def test_strangers_and_edited_small_files_are_named(folder: Path) -> None:
    """Weights that a loader would read, an edited config, a missing card; a note of the user's is nobody's business."""
    shutil.copy(folder / "a" / "model.safetensors", folder / "out")
    (folder / "out" / "config.json").write_text("{}")
    (folder / "out" / "README.md").unlink()
    (folder / "out" / "notes.txt").write_text("mine")
    assert said(verify(folder, quick=True)) == [
        f"model.safetensors is not in {LOCK_FILE}, and a loader would read it",
        "README.md is missing",
        "config.json was edited since it was written",
    ]


def tensor_of(lock: dict[str, Any]) -> dict[str, Any]:
    entry = lock["shards"][0]["tensors"]["lm_head.weight"]
    assert isinstance(entry, dict)
    return entry


EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a key": (lambda lock: tensor_of(lock).update(key="0" * 64), "lm_head.weight has another key"),
    "a variable": (lambda lock: lock["variables"].update(t=0.5), "lm_head.weight has other bytes"),
    "the recipe": (lambda lock: lock.update(recipe=lock["recipe"].replace("0.6", "0.7")), "has another key"),
    "an input's digest": (lambda lock: lock["models"]["./a"]["tensors"].update({"lm_head.weight": "0"}), "1 of 9"),
    "a file's digest": (lambda lock: lock["files"].update({"config.json": "0"}), "config.json was edited"),
    "a sample": (lambda lock: lock["shards"][0].update(sample="0"), "has other bytes than were written"),
}


@pytest.mark.parametrize("what", EDITS)
def test_an_edited_lock_does_not_pass(folder: Path, what: str) -> None:
    """Whatever in it is changed: it no longer belongs to the recipe, the inputs or the files."""
    change, message = EDITS[what]
    edit_lock(folder, change)
    found = verify(folder)
    assert found.exit_code == 3
    assert any(message in line for line in said(found)), said(found)


def test_an_edited_lock_says_that_the_bytes_are_still_right(folder: Path) -> None:
    """Only a key was changed: the tensor is computed all the same, and is equal."""
    edit_lock(folder, lambda lock: tensor_of(lock).update(key="0" * 64))
    found = verify(folder)
    assert (found.keys, found.bytes) == (8, 9)
    assert [fault.kind for fault in found.faults] == ["key"]


def test_an_input_that_changed_is_named_by_file_and_count(folder: Path) -> None:
    """And so is every tensor that depends on it; the others are computed and equal."""
    tensors = read_model(folder / "a")
    for name in ("model.norm.weight", "lm_head.weight"):
        tensors[name][0] += 1
    write_model(folder / "a", tensors)
    found = verify(folder)
    assert said(found) == [
        "a/model.safetensors changed: 2 of 9 tensors",
        "lm_head.weight depends on an input that changed",
        "model.norm.weight depends on an input that changed",
    ]
    assert (found.keys, found.bytes, found.exit_code) == (7, 7, 3)


def test_a_missing_input_is_told_and_what_can_be_checked_is(folder: Path) -> None:
    """Exit code 1 with the model's name; damage that shows without inputs is still found."""
    shutil.rmtree(folder / "b")
    found = verify(folder)
    assert (found.exit_code, found.faults, found.keys) == (1, (), 0)
    assert len(found.missing) == 1
    assert "./b: no such folder" in found.missing[0]
    (folder / "out" / "config.json").write_text("{}")
    assert verify(folder).exit_code == 3


def test_inputs_are_found_where_the_recipe_lay(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any current folder, for an output anywhere: this machine remembers the recipe's folder."""
    mergeflow.run(folder / "recipe.yaml", tmp_path / "elsewhere", options=options(folder))
    monkeypatch.chdir(tmp_path)
    assert mergeflow.verify(tmp_path / "elsewhere", options=options(folder)).exit_code == 0
    forgotten = options(folder, state=tmp_path / "fresh")
    assert mergeflow.verify(tmp_path / "elsewhere", options=forgotten).exit_code == 1


def test_a_damaged_memory_of_folders_is_the_same_as_none(folder: Path) -> None:
    """The file only helps: whatever stands in it, nothing fails."""
    shutil.rmtree(folder / "state" / "outputs")
    mergeflow.run(folder / "recipe.yaml", options=options(folder))
    (memory,) = (folder / "state" / "outputs").iterdir()
    assert recall_folders(folder / "state", folder / "out") == (folder,)
    for text in ("", "[]", "[" * 100_000, '{"output": 3, "folders": 4}', "\0"):
        memory.write_text(text)
        assert recall_folders(folder / "state", folder / "out") == ()
    assert verify(folder, quick=True).exit_code == 0


def test_models_may_be_named_by_a_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--models finds them by their paths and, where those were other ones, by their last names."""
    (folder / "moved").mkdir()
    for name in ("base", "a", "b"):
        (folder / name).rename(folder / "moved" / name)
    monkeypatch.chdir(tmp_path)
    fresh = options(folder, state=tmp_path / "fresh")
    assert mergeflow.verify(folder / "out", models=folder / "moved", options=fresh).exit_code == 0
    (folder / "absolute.yaml").write_text(SHARDED.replace("./", f"{folder}/moved/").replace("moved/out", "second"))
    mergeflow.run(folder / "absolute.yaml", options=options(folder))
    (folder / "moved").rename(folder / "again")
    assert mergeflow.verify(folder / "second", options=fresh).exit_code == 1
    assert mergeflow.verify(folder / "second", models=folder / "again", options=fresh).exit_code == 0


def spoil_records(cache: Path) -> int:
    """Give every statistic in a cache another value, under the key it had and sound in itself."""
    store, count = Cache(cache), 0
    for path in sorted(cache.rglob("zarr.json")):
        key = path.parent.name
        entry = store.lookup([key]).get(key)
        if entry is not None and entry.kind == "record":
            record = {name: _other(value) for name, value in store.read_record(key).items()}
            store.discard(key)
            store.write_record(key, record, dict(entry.about))
            count += record != {}
    return count


def _other(value: object) -> object:
    if isinstance(value, float):
        return value * 1.5 + 0.01
    return [_other(it) for it in value] if isinstance(value, list) else value


def test_the_cache_is_not_believed_unless_asked(folder: Path) -> None:
    """A poisoned statistic changes nothing of what is recomputed; with `cached` it does."""
    assert spoil_records(folder / "cache") > 0
    assert verify(folder).exit_code == 0
    assert verify(folder, cached=True).exit_code == 3


def test_an_own_method_must_be_known(folder: Path) -> None:
    """Verifying needs the function that made it: without it, it says so, and how to bring it."""

    def halfway(tensors: list[torch.Tensor]) -> torch.Tensor:
        return tensors[0] * 0.5

    declared = mergeflow.merge_method(version=1)(halfway)
    assert declared is not None
    (folder / "own.yaml").write_text(
        "mergeflow: 1\nmodels: {a: ./a}\nsteps: {s: {merge_method: halfway, models: [{model: a}]}}\n"
    )
    mergeflow.run(folder / "own.yaml", folder / "own", options=options(folder))
    assert verify(folder, "own").exit_code == 0
    from mergeflow.methods import registry

    registry._declared.clear()
    registry._declaration_of.cache_clear()
    found = verify(folder, "own")
    assert found.exit_code == 1
    assert "'halfway'" in found.missing[0]
    assert "import the module that declares it, or install its plug-in" in found.missing[0]


@pytest.mark.parametrize("out", ["delta", "delta.safetensors"])
def test_an_exported_delta_is_verified_like_a_model(folder: Path, out: str) -> None:
    """Untouched it is equal; a flipped byte is named by its tensor."""
    mergeflow.export(folder / "recipe.yaml", "skill_a", folder / out, options=options(folder))
    assert verify(folder, out).bytes == 9
    file = folder / out if out.endswith("s") else folder / out / "delta.safetensors"
    flip(file, file.stat().st_size - 1)
    assert [fault.kind for fault in verify(folder, out).faults if fault.kind == "tensor"] == ["tensor"]


def test_the_seed_of_the_command_line_is_used_again(folder: Path) -> None:
    """Random masks drawn with another seed than the recipe's verify, for the lock has it."""
    (folder / "random.yaml").write_text(RECIPE.replace("merge_method: ties", "merge_method: dare_ties"))
    recipe = replace(mergeflow.load(folder / "random.yaml"), seed=7)
    mergeflow.run(recipe, folder / "random", options=options(folder))
    assert verify(folder, "random").exit_code == 0
    lock = read_lock(folder / "random")
    assert lock is not None
    assert lock.seed == 7


def test_variables_of_any_kind_are_used_again(folder: Path) -> None:
    """A gradient with many digits, a number, and a text that looks like a number come back from the lock."""
    text = RECIPE.replace("vars: {density: 0.5, t: 0.4}", 'vars: {density: 0.5, t: [0.123456789, 0.9], dir: "1"}')
    (folder / "1").symlink_to(folder / "b")
    (folder / "recipe.yaml").write_text(text.replace("b: ./b", 'b: "./${dir}"'))
    mergeflow.run(mergeflow.load(folder / "recipe.yaml", density="0.33"), folder / "v", options=options(folder))
    assert verify(folder, "v").exit_code == 0


def test_what_is_no_output_is_refused(folder: Path) -> None:
    """A model of somebody else's, a missing folder, a damaged lock: an OutputError that names it."""
    for out, message in (("a", "has no mergeflow.lock.json"), ("nothing", "there is no")):
        with pytest.raises(OutputError, match=message):
            verify(folder, out)
    (folder / "out" / LOCK_FILE).write_text('{"format": 1, "format": 1}')
    with pytest.raises(OutputError, match="given twice"):
        verify(folder)


def test_comparing_notes_the_first_difference_of_each_tensor(tmp_path: Path) -> None:
    """Blocks may come in any order; a file that ends early differs where it ends."""
    path = str(tmp_path / "file")
    Path(path).write_bytes(bytes(range(40)))
    with ComparedFiles() as compared:
        for start in (20, 10, 30, 0):
            block = bytearray(range(start, start + 10))
            if start in (10, 20):
                block[5] += 1
            compared.write(path, start, memoryview(block))
        compared.write(path, 36, memoryview(bytes(range(36, 44))))
    assert compared.first_difference(path, 10, 20) == 5
    assert compared.first_difference(path, 0, 10) is None
    assert compared.first_difference(path, 36, 8) == 4
