"""Any step written after the fact: what a run would have written, or a delta that nobody can take for a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from three_models import RECIPE, settle, three_models
from tiny_checkpoints import llama_tensors, raw_bytes, read_model, write_model

import mergeflow
from mergeflow.errors import OutputError, RecipeError, RunError
from mergeflow.execute.events import ignore
from mergeflow.output.disk import Disk
from mergeflow.workflow.exporting import export_step
from mergeflow.workflow.options import Options
from mergeflow.workflow.report import RunReport

TWO_OUTPUTS = RECIPE.replace("{final: {path: ./out}}", "{final: {path: ./out, dtype: bfloat16}, skills: ./skills}")


def options(folder: Path, **wishes: object) -> Options:
    stated: dict[str, object] = {"cache": folder / "cache", "state": folder / "state", "workers": 1, "device": "cpu"}
    return Options(**(stated | wishes))  # type: ignore[arg-type]


def export(folder: Path, step: str, out: str, **wishes: object) -> RunReport:
    recipe = mergeflow.load(folder / "recipe.yaml")
    return export_step(recipe, step, folder / out, options(folder), ignore, **wishes)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return three_models(tmp_path)


def metadata(file: Path) -> Mapping[str, str]:
    with safe_open(file, "pt") as opened:
        return opened.metadata() or {}


@pytest.mark.parametrize("step", ["final", "skills"])
def test_an_exported_output_is_what_the_run_wrote(folder: Path, step: str) -> None:
    """Every file is the same, byte for byte: weights, config, card and lock, with the output's own number format."""
    (folder / "recipe.yaml").write_text(TWO_OUTPUTS)
    mergeflow.run(folder / "recipe.yaml", folder / "run", options=options(folder))
    export(folder, step, f"other/{step}")
    assert raw_bytes(folder / "other" / step) == raw_bytes(folder / "run" / step)


def test_a_step_that_is_no_output_is_the_model_a_run_would_make_of_it(folder: Path) -> None:
    """The weights, config and shards are those of a recipe that names the step as its output."""
    export(folder, "skills", "exported", max_shard_bytes=4000)
    outputs = "outputs: {skills: {path: ./out, max_shard_size: 4000B}}\n"
    (folder / "recipe.yaml").write_text(RECIPE.replace("outputs: {final: {path: ./out}}\n", outputs.replace("B", "")))
    mergeflow.run(folder / "recipe.yaml", folder / "run", options=options(folder))
    made, expected = raw_bytes(folder / "exported"), raw_bytes(folder / "run")
    differs = {name for name in made | expected if made.get(name) != expected.get(name)}
    assert differs == {"README.md", "mergeflow.lock.json"}  # they state the recipe's text


def test_what_the_run_left_in_the_cache_is_not_computed_again(folder: Path) -> None:
    """An export after a run computes no statistic, and reads a step that is always cached from the cache."""
    (folder / "recipe.yaml").write_text(RECIPE.replace("  skills:\n", "  skills:\n    cache: always\n"))
    mergeflow.run(folder / "recipe.yaml", folder / "out", options=options(folder))
    done = export(folder, "skills", "exported")
    assert done.statistics["computed"] == 0
    assert done.tensors.cached == done.tensors.total == 9


def test_an_export_leaves_the_recipes_history_alone(folder: Path) -> None:
    """What a plan compares with is still the last run."""
    mergeflow.run(folder / "recipe.yaml", folder / "out", options=options(folder))
    before = raw_bytes(folder / "state" / "runs")
    export(folder, "skill_a", "delta")
    assert raw_bytes(folder / "state" / "runs") == before


@pytest.mark.parametrize("out", ["delta.safetensors", "delta"])
def test_base_and_delta_are_the_weights_that_adding_gives(folder: Path, out: str) -> None:
    """Adding an exported delta, by hand or in a recipe, gives the bytes that adding the step gives."""
    export(folder, "skill_a", out)
    file = folder / out if out.endswith("s") else folder / out / "delta.safetensors"
    with safe_open(file, "pt") as delta:
        by_hand = {name: read_model(folder / "base")[name] + delta.get_tensor(name) for name in delta.keys()}  # noqa: SIM118
    text = (
        "mergeflow: 1\nmodels: {base: ./base, d: %s}\nsteps:\n  s: {merge_method: task_arithmetic, base_model: base, "
    )
    text += "models: [{model: d, parameters: {weight: 1}}]}\n"
    made = {}
    for name, source in (("file", f"./{out}"), ("step", "./a")):
        (folder / f"{name}.yaml").write_text(text % source)
        mergeflow.run(folder / f"{name}.yaml", folder / name, options=options(folder))
        made[name] = read_model(folder / name)
    for name, expected in made["step"].items():
        assert torch.equal(made["file"][name], expected)
        assert torch.equal(by_hand[name], expected)


def test_a_delta_of_narrow_models_keeps_every_digit(tmp_path: Path) -> None:
    """The difference of two bfloat16 models is float32 in the file; with a dtype it is what was asked for."""
    folder = three_models(tmp_path)
    for seed, name in enumerate(("base", "a", "b")):
        write_model(folder / name, llama_tensors(seed, dtype=torch.bfloat16))
    settle()
    export(folder, "skill_a", "wide.safetensors")
    export(folder, "skill_a", "narrow.safetensors", dtype="float16")
    base, a = read_model(folder / "base"), read_model(folder / "a")
    with safe_open(folder / "wide.safetensors", "pt") as wide, safe_open(folder / "narrow.safetensors", "pt") as narrow:
        for name, value in a.items():
            assert torch.equal(wide.get_tensor(name), value.float() - base[name].float())
            assert narrow.get_tensor(name).dtype == torch.float16


def test_a_delta_folder_cannot_be_taken_for_a_model(folder: Path) -> None:
    """It has weights under no name that a loader looks for, and neither a config nor a tokenizer."""
    (folder / "base" / "tokenizer_config.json").write_text("{}")
    export(folder, "skill_a", "delta", max_shard_bytes=4000)
    index = json.loads((folder / "delta" / "delta.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert shards == [f"delta-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]
    names = {path.name for path in (folder / "delta").iterdir()}
    assert names == {*shards, "delta.safetensors.index.json", "README.md", "mergeflow.lock.json"}


@pytest.mark.parametrize("out", ["delta.safetensors", "delta"])
def test_a_delta_says_what_it_is_and_of_which_base(folder: Path, out: str) -> None:
    """The header names the kind, the mergeflow, the step and the digest of the base, as the lock has it."""
    export(folder, "skill_a", out)
    said = metadata(folder / out if out.endswith("s") else folder / out / "delta.safetensors")
    base = mergeflow.lineage(folder / out).models["./base"]
    assert said["mergeflow.type"] == "delta"
    assert said["mergeflow.version"] == mergeflow.__version__
    assert (said["mergeflow.step"], said["mergeflow.base"]) == ("skill_a", base.digest)


def test_a_delta_where_weights_belong_is_an_error(folder: Path) -> None:
    """A recipe that averages a model with a delta file is refused before anything is computed."""
    export(folder, "skill_a", "delta.safetensors")
    (folder / "mixed.yaml").write_text(
        "mergeflow: 1\nmodels: {d: ./delta.safetensors, a: ./a}\nsteps:\n  s: {merge_method: linear, "
        "models: [{model: a, parameters: {weight: 1}}, {model: d, parameters: {weight: 1}}]}\n"
    )
    with pytest.raises(RecipeError, match="delta"):
        mergeflow.plan(folder / "mixed.yaml", options=options(folder))


def test_an_unknown_step_is_named_with_the_nearest(folder: Path) -> None:
    """And nothing is written."""
    with pytest.raises(RecipeError, match="no step 'skils'; did you mean 'skills'"):
        export(folder, "skils", "x")
    assert not (folder / "x").exists()


def test_a_candidate_of_a_sweep_is_exported_when_it_is_named(folder: Path) -> None:
    """A sweep has many results: one is asked for with its variable's value, and verifies as that one."""
    text = RECIPE.replace("vars: {density: 0.5, t: 0.4}", "vars: {density: 0.5}\nsweep: {t: [0.4, 0.6]}")
    (folder / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError, match="sweep of 2 candidates: choose one, with --set for t"):
        export(folder, "final", "x")
    made = {}
    for t in (0.4, 0.6):
        recipe = mergeflow.load(folder / "recipe.yaml", t=t)
        export_step(recipe, "final", folder / f"t{t}", options(folder), ignore)
        assert mergeflow.verify(folder / f"t{t}", options=options(folder)).exit_code == 0
        made[t] = read_model(folder / f"t{t}")
    assert any(not torch.equal(made[0.4][name], value) for name, value in made[0.6].items())


def test_a_model_is_not_written_as_one_file(folder: Path) -> None:
    """Weights need their config: a file's name is refused for them."""
    with pytest.raises(OutputError, match="is a model, which is a folder"):
        export(folder, "skills", "x.safetensors")
    assert not list(folder.glob("*.safetensors"))


def test_a_file_of_somebody_else_is_never_replaced(folder: Path) -> None:
    """Not one that is no delta, and not one in the folder of a model that is read; an earlier export is replaced."""
    (folder / "mine.safetensors").write_bytes(b"mine")
    with pytest.raises(OutputError, match="did not write"):
        export(folder, "skill_a", "mine.safetensors")
    with pytest.raises(OutputError, match="only read"):
        export(folder, "skill_a", "a/model.safetensors")
    assert (folder / "mine.safetensors").read_bytes() == b"mine"
    export(folder, "skill_a", "delta.safetensors")
    export(folder, "skill_b", "delta.safetensors")
    assert metadata(folder / "delta.safetensors")["mergeflow.step"] == "skill_b"


def test_a_failed_export_leaves_the_earlier_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails when the shard is completed: the old file is whole, and the next export succeeds."""
    export(folder, "skill_a", "delta.safetensors")
    before = (folder / "delta.safetensors").read_bytes()

    def fail(self: Disk, path: Path) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(Disk, "sync", fail)
        with pytest.raises((RunError, OutputError)):
            export(folder, "skill_b", "delta.safetensors")
    assert (folder / "delta.safetensors").read_bytes() == before
    export(folder, "skill_b", "delta.safetensors")
    assert (folder / "delta.safetensors").read_bytes() != before
    assert not list(folder.glob(".*"))


def test_only_what_leads_to_the_step_is_opened(folder: Path) -> None:
    """A model that only other steps need may be gone."""
    (folder / "b" / "model.safetensors").unlink()
    assert export(folder, "skill_a", "delta.safetensors").tensors.total == 9
    lock = mergeflow.lineage(folder / "delta.safetensors")
    assert set(lock.models) == {"./a", "./base"}
    assert set(lock.steps) == {"skill_a"}


def test_a_seed_of_the_command_line_is_in_the_lock(folder: Path) -> None:
    """Without it nobody could make the same random masks again; the recipe's own seed needs no mention."""
    recipe = mergeflow.load(folder / "recipe.yaml")
    for seed in (0, 7):
        export_step(replace(recipe, seed=seed), "skill_a", folder / f"s{seed}", options(folder), ignore)
    assert [mergeflow.lineage(folder / f"s{seed}").seed for seed in (0, 7)] == [None, 7]
