"""Runs with a user's own methods: from Python, from plug-ins on the command line, in other processes."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_checkpoints import llama, read_model
from torch import Tensor

import mergeflow
from mergeflow.cli.methods import method_text
from mergeflow.errors import MethodError, RecipeError, RunError
from mergeflow.methods import registry

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from mergeflow.cli.main import main; main()"]

RECIPE = """\
mergeflow: 1
models: {base: ./base, a: ./a, b: ./b}
vars: {t: 0.5}
steps:
  skills:
    merge_method: lean
    base_model: base
    models:
      - {model: a, parameters: {weight: 0.75}}
      - {model: b, parameters: {weight: [0, 1]}}
    parameters: {t: "${t}"}
outputs: {skills: {path: ./out}}
"""

PLUGIN = """\
import torch
import mergeflow

@mergeflow.merge_method(version=1{options})
def lean(
    tensors: list[torch.Tensor], base: torch.Tensor, weight: mergeflow.PerModel[float] = 1.0, t: float = 0.5
) -> torch.Tensor:
    '''Leans towards the weighted sum.'''
    return base + t * sum(w * (x - base) for w, x in zip(weight, tensors))
"""


def lean(tensors: list[Tensor], base: Tensor, weight: mergeflow.PerModel[float] = 1.0, t: float = 0.5) -> Tensor:
    """The same as the plug-in's."""
    return base + t * sum((w * (x - base) for w, x in zip(weight, tensors, strict=True)), torch.zeros_like(base))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three models and a recipe that names the method `lean`."""
    for seed, name in enumerate(("base", "a", "b")):
        llama(tmp_path / name, seed)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages, for this process and those it starts."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT)]))
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        del sys.modules[name]


def install(site: Path, module: str, text: str, points: Sequence[str], version: str = "1.0") -> None:
    """Put a package into a folder of installed packages."""
    (site / f"{module}.py").write_text(text)
    info = site / f"{module}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text("\n".join(["[mergeflow.methods]", *points, ""]))
    importlib.invalidate_caches()


def expected(folder: Path) -> dict[str, Tensor]:
    """What the recipe says, in other words."""
    base, a, b = (read_model(folder / name) for name in ("base", "a", "b"))
    found = {}
    for name, tensor in base.items():
        depth = float(name.split(".")[2]) if "layers" in name else 0.0
        found[name] = tensor + 0.5 * (0.75 * (a[name] - tensor) + depth * (b[name] - tensor))
    return found


def check(folder: Path, out: str = "out") -> None:
    made = read_model(folder / out)
    for name, tensor in expected(folder).items():
        torch.testing.assert_close(made[name], tensor)


def counts(report: object) -> tuple[int, int]:
    """Tensors that a run computed, and that it kept."""
    tensors = report.tensors  # type: ignore[attr-defined]
    return tensors.computed, tensors.kept


@pytest.mark.parametrize("pointwise", [False, True])
def test_a_declared_function_runs_by_its_name(folder: Path, pointwise: bool) -> None:
    """A recipe that names it gives what the function gives, by threads, with each tensor's own parameters."""
    mergeflow.merge_method(version=1, pointwise=pointwise)(lean)
    mergeflow.run(mergeflow.load(folder / "recipe.yaml"))
    check(folder)


def test_what_did_not_change_is_not_computed_again(folder: Path) -> None:
    """The key has the method's name, version and source: another version is another result."""
    declared = mergeflow.merge_method(version=1)(lean)
    assert counts(mergeflow.run(folder / "recipe.yaml")) == (9, 0)
    assert counts(mergeflow.run(folder / "recipe.yaml")) == (0, 9)
    mergeflow.merge_method(version=2)(lean)
    assert counts(mergeflow.run(folder / "recipe.yaml")) == (9, 0)
    assert declared is not lean


def test_an_edited_function_is_computed_again(folder: Path) -> None:
    """Nothing stale is used, though nobody raised the version."""
    mergeflow.merge_method(lean)
    mergeflow.run(folder / "recipe.yaml")
    before = read_model(folder / "out")

    def edited(tensors: list[Tensor], base: Tensor, weight: mergeflow.PerModel[float] = 1.0, t: float = 0.5) -> Tensor:
        return base - t * tensors[0] * weight[0]

    edited.__qualname__ = edited.__name__ = "lean"
    mergeflow.merge_method(edited)
    assert "lean's code " in mergeflow.plan(folder / "recipe.yaml").steps[0].why[0]
    assert counts(mergeflow.run(folder / "recipe.yaml")) == (9, 0)
    assert not torch.equal(read_model(folder / "out")["model.norm.weight"], before["model.norm.weight"])


def test_a_plan_and_an_explanation_name_the_method(folder: Path) -> None:
    """Not the operation that stands for all such methods."""
    from mergeflow.workflow.explaining import explain_recipe

    mergeflow.merge_method(lean)
    recipe = mergeflow.load(folder / "recipe.yaml")
    (explained,) = explain_recipe(recipe, "model.norm.weight", mergeflow.Options(), lambda _: None)
    assert explained.steps[0].formula == "lean(a, b, base; weight=[0.75, 0], t=0.5)"
    assert mergeflow.plan(recipe).steps[0].method == "lean"


def test_a_recipe_is_checked_against_the_signature(folder: Path) -> None:
    """An unknown parameter, a wrong value: with their place in the file, as for a method of ours."""
    mergeflow.merge_method(lean)
    (folder / "recipe.yaml").write_text(RECIPE.replace("weight: 0.75", "wieght: 0.75").replace("t: 0.5", "t: half"))
    with pytest.raises(RecipeError) as raised:
        mergeflow.plan(folder / "recipe.yaml")
    assert "recipe.yaml:9" in str(raised.value)
    assert "did you mean 'weight'" in str(raised.value)
    assert "'half' is not a number" in str(raised.value)


def test_what_a_method_does_wrong_ends_the_run(folder: Path) -> None:
    """One message with the tensor and the method; nothing is published."""

    def shorter(tensors: list[Tensor], base: Tensor, weight: mergeflow.PerModel[float] = 1.0, t: float = 1) -> Tensor:
        return base.reshape(-1)[1:]

    mergeflow.merge_method(name="lean")(shorter)
    with pytest.raises(RunError, match=r"\.weight: the method 'lean' gave float32 \[\d+\]; from tensors of"):
        mergeflow.run(folder / "recipe.yaml")
    assert not (folder / "out").exists()


def test_a_plug_in_is_found_by_its_entry_point(folder: Path, site: Path) -> None:
    """Nothing is imported until a recipe names it; the package and its version are part of the key."""
    install(site, "lean_plugin", PLUGIN.format(options=""), ["lean = lean_plugin:lean"], version="2.3")
    assert "lean" in registry.method_names()
    assert "lean_plugin" not in sys.modules
    mergeflow.run(folder / "recipe.yaml")
    check(folder)
    assert registry.identity(registry._declared["lean"])["package"] == "lean_plugin 2.3"
    assert registry.all_methods()[0]["lean"].summary == "Leans towards the weighted sum."


def test_a_plug_in_works_on_the_command_line(folder: Path, site: Path) -> None:
    """run and methods know it like any other."""
    install(site, "lean_plugin", PLUGIN.format(options=", pointwise=True"), ["lean = lean_plugin:lean"])
    arguments = ["run", "recipe.yaml", "--quiet"]
    done = subprocess.run([*COMMAND, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    check(folder)

    method = registry.find_method("lean")
    assert method is not None
    said = method_text(method)
    assert "Leans towards the weighted sum." in said
    assert "merge_method: lean\n  base_model: ./models/base" in said


def test_a_plug_in_works_in_other_processes(folder: Path, site: Path) -> None:
    """A worker imports it by itself."""
    install(site, "lean_plugin", PLUGIN.format(options=""), ["lean = lean_plugin:lean"])
    options = replace(mergeflow.Options(), scheduler="processes", workers=1)
    mergeflow.run(folder / "recipe.yaml", options=options)
    check(folder)


def broken_plug_ins() -> list[tuple[str, str, list[str], str]]:
    """(what it is, its module, its entry points, what a recipe that names it is told)."""
    plain = "def lean(tensors): return tensors[0]\n"
    bad = PLUGIN.format(options="").replace("t: float", "t: dict")
    other = PLUGIN.format(options=', name="leaning"')
    return [
        ("fails to import", "import no_such_thing", ["lean = lean_plugin:lean"], "No module named 'no_such_thing'"),
        ("has no such function", "x = 1", ["lean = lean_plugin:lean"], "cannot be used: AttributeError"),
        ("is not declared", plain, ["lean = lean_plugin:lean"], "is not declared as the method 'lean'"),
        ("is declared as another", other, ["lean = lean_plugin:lean"], "is not declared as the method 'lean'"),
        ("has a bad signature", bad, ["lean = lean_plugin:lean"], "t is annotated dict"),
    ]


@pytest.mark.parametrize("broken", broken_plug_ins(), ids=lambda it: it[0])
def test_a_broken_plug_in_is_one_message(folder: Path, site: Path, broken: tuple[str, str, list[str], str]) -> None:
    """At the line of the recipe that names it, with the package; no other recipe is bothered."""
    _, text, points, words = broken
    install(site, "lean_plugin", text, points)
    with pytest.raises(RecipeError) as raised:
        mergeflow.plan(folder / "recipe.yaml")
    (problem,) = raised.value.problems
    assert words in problem.message
    assert "the plug-in lean of the package lean_plugin" in problem.message
    assert problem.position is not None
    assert (problem.position.line, problem.path) == (6, "steps.skills.merge_method")

    (folder / "other.yaml").write_text(
        "merge_method: linear\nmodels: [{model: ./a}, {model: ./b}]\nparameters: {weight: 1}\n"
    )
    mergeflow.plan(folder / "other.yaml", folder / "made")


def test_two_methods_of_one_name_are_told(folder: Path, site: Path) -> None:
    """A name never means one method today and another tomorrow."""
    install(site, "one", PLUGIN.format(options=""), ["lean = one:lean"])
    install(site, "two", PLUGIN.format(options=""), ["lean = two:lean"])
    with pytest.raises(RecipeError, match="there are 2 methods 'lean': one:lean, two:lean"):
        mergeflow.plan(folder / "recipe.yaml")


def test_a_plug_in_cannot_take_a_built_in_name(site: Path) -> None:
    """Its own import says so; a recipe that says `ties` means ours; a list of all methods tells."""
    install(site, "lean_plugin", PLUGIN.format(options=', name="ties"'), ["ties = lean_plugin:lean"])
    with pytest.raises(MethodError, match="built-in"):
        importlib.import_module("lean_plugin")
    assert registry.method_names().count("ties") == 1
    _, broken = registry.all_methods()
    assert broken == ("the plug-in ties of the package lean_plugin: its name is that of a built-in method",)
