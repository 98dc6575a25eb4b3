"""What changed since the last run, tensor by tensor: exactly what concerns the tensor, in words that point at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from three_steps import NAMES, let_settle, options, three_models
from tiny_checkpoints import write_model

from mergeflow.execute.events import ignore
from mergeflow.graph import history as history_module
from mergeflow.graph import nodes
from mergeflow.graph.chain import chain_formula, tensors_on_the_way
from mergeflow.graph.changes import Changes
from mergeflow.graph.history import History, history_of
from mergeflow.graph.reasons import Causes, summed_up
from mergeflow.graph.tasks import Known, needed_nodes
from mergeflow.graph.values import Compiled
from mergeflow.graph.why import Situation, must_run
from mergeflow.recipe.read import read_recipe
from mergeflow.recipe.records import Recipe
from mergeflow.workflow.history_file import decoded, encoded, read_history, write_history
from mergeflow.workflow.models import compile_from_headers, compile_with_digests

RECIPE = """\
mergeflow: 1
seed: 0
models: {base: ./base, math: ./math, code: ./code}
vars: {density: 0.5}
steps:
  math_skill: {task_vector: {model: math, base: base}}
  thin: {sparsify: {delta: math_skill, method: random, density: 0.9}}
  skills:
    merge_method: ties
    base_model: base
    models:
      - {model: thin, parameters: {weight: 0.6, density: "${density}"}}
      - {model: code, parameters: {weight: 0.4, density: [0.3, 0.5]}}
  final:
    merge_method: slerp
    base_model: base
    models: [{model: base}, {model: skills}]
    parameters:
      t:
        - {filter: mlp, value: 0.2}
        - {value: [0.1, 0.5, 0.9]}
outputs: {final: {path: ./out}}
"""
DOWN, QUERY = "model.layers.1.mlp.down_proj.weight", "model.layers.1.self_attn.q_proj.weight"

Made = tuple[Recipe, Compiled]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that no test changes."""
    return three_models(tmp_path_factory.mktemp("models"), large=(16, 24), layers=2)


@pytest.fixture
def own_models(tmp_path: Path) -> Path:
    """Models of two files each, to be changed."""
    return three_models(tmp_path, large=(16, 24), layers=2, shards=2)


def made(folder: Path, text: str = RECIPE, **variables: str) -> Made:
    """A recipe with a key for every node."""
    recipe = read_recipe(folder / "recipe.yaml", variables, text=text)
    wishes = options(folder)
    headers = compile_from_headers(recipe, ignore, download=False, state=wishes.state)
    assert not [str(problem) for problem in headers.problems if problem.severity == "error"]
    return recipe, compile_with_digests(recipe, headers, wishes, ignore)


def remembered(before: Made) -> History:
    """What the next run finds of a run."""
    found = decoded(encoded(history_of(*before)))
    assert found is not None
    return found


def changes(before: Made, after: Made) -> Changes:
    return Changes(*after, remembered(before), history_of(*after))


def edited(old: str, new: str, text: str = RECIPE) -> str:
    assert text.count(old) == 1
    return text.replace(old, new)


def lines(found: Mapping[str, Causes]) -> dict[str, list[str]]:
    return {name: causes.lines() for name, causes in found.items()}


def keys(compiled: Compiled) -> dict[tuple[str, str], str | None]:
    """The key of every tensor of every step."""
    return {
        (step, name): compiled.graph[tensor.node].key
        for step, result in compiled.results.items()
        for name, tensor in result.tensors.items()
    }


class TestOneThing:
    def test_a_parameter_is_pointed_at(self, models: Path) -> None:
        """The issue's first example; the variable that `--set` gave another value stands for the parameter it is in."""
        found = changes(made(models), made(models, density="0.4"))
        assert lines(found.found["skills"])[DOWN] == ["skills.models[0].parameters.density 0.5 -> 0.4"]
        assert lines(found.found["final"])[DOWN] == [
            "because skills changed: skills.models[0].parameters.density 0.5 -> 0.4"
        ]
        assert found.found["math_skill"] == found.found["thin"] == {}

    def test_a_gradient_is_given_as_what_it_is_here(self, models: Path) -> None:
        """A tensor is told its own number; a tensor whose number stays is told nothing, and has not changed."""
        found = changes(made(models), made(models, edited("[0.1, 0.5, 0.9]", "[0.1, 0.5, 1]")))
        assert lines(found.found["final"])[QUERY] == ["final.parameters.t 0.9 -> 1"]
        assert DOWN not in found.found["final"]  # the filter above decides
        assert "model.layers.0.self_attn.q_proj.weight" not in found.found["final"]

    def test_a_field_of_an_operation_has_its_own_path(self, models: Path) -> None:
        """A step that is one operation is pointed at as it is written."""
        found = changes(made(models), made(models, edited("density: 0.9", "density: 0.8")))
        assert lines(found.found["thin"])[DOWN] == ["thin.sparsify.density 0.9 -> 0.8"]

    def test_a_seed_concerns_what_is_drawn(self, models: Path) -> None:
        """The step that draws says so, and those behind it name the step they read."""
        found = changes(made(models), made(models, edited("seed: 0", "seed: 1")))
        assert lines(found.found["thin"])[DOWN] == ["seed 0 -> 1"]
        assert lines(found.found["skills"])[DOWN] == ["because thin changed: seed 0 -> 1"]
        assert found.found["math_skill"] == {}

    def test_a_format(self, models: Path) -> None:
        """Rounding is a setting like any other."""
        found = changes(made(models), made(models, edited("  final:\n", "  final:\n    dtype: bfloat16\n")))
        assert lines(found.found["final"])[DOWN] == ["final.dtype (unset) -> bfloat16"]

    def test_another_method(self, models: Path) -> None:
        """What is as it was, and what only is another default, is no reason."""
        found = changes(made(models), made(models, edited("merge_method: ties", "merge_method: dare_ties")))
        assert lines(found.found["skills"])[DOWN] == ["skills.merge_method ties -> dare_ties"]

    def test_another_model(self, models: Path) -> None:
        """A field that names another model is shown with both; what is added or left out is named."""
        before = made(models)
        other = changes(before, made(models, edited("{model: code,", "{model: math,")))
        assert lines(other.found["skills"])[DOWN] == ["skills.models[1].model ./code -> ./math"]
        third = "      - {model: math, parameters: {weight: 0.1}}\n"
        added = changes(before, made(models, edited("  final:\n", third + "  final:\n")))
        assert lines(added.found["skills"])[DOWN] == ["math is new in skills"]
        left_out = changes(made(models, edited("  final:\n", third + "  final:\n")), before)
        assert lines(left_out.found["skills"])[DOWN] == ["math was left out of skills"]

    def test_a_new_step(self, models: Path) -> None:
        """A step that the last run had not is new, and what reads it in place of another says both."""
        text = edited("{model: skills}]", "{model: more}]").replace(
            "  final:\n",
            "  more: {merge_method: passthrough, models: [{model: skills, parameters: {scale: 2}}]}\n  final:\n",
        )
        found = changes(made(models), made(models, text))
        assert lines(found.found["more"])[DOWN] == ["step more is new"]
        assert lines(found.found["final"])[DOWN] == [
            "final.models[1].model skills -> more",
            "because more changed: step more is new",
        ]

    def test_a_version(self, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The issue's third example: an operation whose version was raised concerns the methods that use it."""
        before = remembered(made(models))
        ops = dict(nodes.OPS)
        ops["consensus"] = replace(ops["consensus"], version=2)
        monkeypatch.setattr(nodes, "OPS", ops)
        monkeypatch.setattr(history_module, "OPS", ops)
        after = made(models)
        found = Changes(*after, before, history_of(*after))
        assert lines(found.found["skills"])[DOWN] == ["method ties is now version 2 (operation consensus)"]
        assert found.found["thin"] == {}


class TestFiles:
    def test_a_file_says_how_much_of_it_changed(self, own_models: Path) -> None:
        """The issue's second example: named as the user names it, and only to the tensors that did change."""
        before = made(own_models)
        names = change(own_models / "math" / "model-00002-of-00002.safetensors", count=3)
        found = changes(before, made(own_models))
        assert found.found["math_skill"].keys() == set(names)
        total = len(load_file(own_models / "math" / "model-00002-of-00002.safetensors"))
        for name in names:
            assert lines(found.found["math_skill"])[name] == [
                f"math/model-00002-of-00002.safetensors changed: 3 of {total} tensors"
            ]

    def test_what_moves_to_other_files_has_not_changed(self, own_models: Path) -> None:
        """The same tensors in one file instead of two: nothing to say."""
        before = made(own_models)
        shards = sorted((own_models / "math").glob("*.safetensors"))
        tensors = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
        for path in (*shards, own_models / "math" / "model.safetensors.index.json"):
            path.unlink()
        save_file(tensors, own_models / "math" / "model.safetensors")
        let_settle(own_models)
        assert not any(changes(before, made(own_models)).found.values())

    def test_a_file_that_was_not_read_since_it_changed(self, own_models: Path) -> None:
        """Without its digest all of it may have changed, which is said of the file."""
        before = made(own_models)
        change(own_models / "math" / "model-00002-of-00002.safetensors", count=1)
        recipe = read_recipe(own_models / "recipe.yaml", text=RECIPE)
        compiled = compile_from_headers(recipe, ignore, download=False, state=options(own_models).state)
        found = Changes(recipe, compiled, remembered(before), history_of(recipe, compiled))
        said = {line for causes in found.found["math_skill"].values() for line in causes.lines()}
        assert said == {"math/model-00002-of-00002.safetensors changed, and is not hashed yet"}


def change(file: Path, count: int) -> list[str]:
    """Change the first tensors of a file that have numbers in them, and give their names."""
    tensors = load_file(file)
    names = [name for name, tensor in tensors.items() if tensor.numel() and tensor.is_floating_point()][:count]
    save_file({name: tensor * 2 + 1 if name in names else tensor for name, tensor in tensors.items()}, file)
    let_settle(file.parent)
    return names


NOTHING_SAID = {
    "a comment": edited("steps:\n", "steps:  # what follows\n"),
    "a step by another name": RECIPE.replace("skills", "talents"),
    "every step by another name": RECIPE.replace("skills", "s").replace("thin", "u").replace("math_skill", "m"),
    "a model by another name": RECIPE.replace("{base: ./base", "{origin: ./base").replace(": base", ": origin"),
    "steps in another order": RECIPE.replace("  thin: {sp", "  #thin: {sp").replace(
        "outputs:", "  thin: {sparsify: {delta: math_skill, method: random, density: 0.9}}\noutputs:"
    ),
    "the same numbers by a variable": edited("density: 0.9", 'density: "${kept}"').replace(
        "vars: {", "vars: {kept: 0.9, "
    ),
}


@pytest.mark.parametrize("text", NOTHING_SAID.values(), ids=NOTHING_SAID.keys())
def test_what_changes_no_value_is_no_reason(models: Path, text: str) -> None:
    """Names, comments and the order of things are not even looked at; a renamed step is still that step."""
    found = changes(made(models), made(models, text))
    assert not any(found.found.values())
    later = changes(made(models), made(models, text, density="0.4"))
    said = {line for causes in later.found["final"].values() for line in causes.lines()}
    assert len(said) == 1
    assert "density 0.5 -> 0.4" in said.pop()


numbers = st.sampled_from(["0", "0.25", "0.5", "1"])
edits = st.fixed_dictionaries(
    {
        'density: "${density}"': numbers.map(lambda it: f"density: {it}"),
        "weight: 0.4": numbers.map(lambda it: f"weight: {it}"),
        "density: [0.3, 0.5]": st.sampled_from(["density: [0.3, 0.5]", "density: 0.3", "density: [0.3, 1]"]),
        "[0.1, 0.5, 0.9]": st.sampled_from(["[0.1, 0.5, 0.9]", "[0.1, 0.9]", "0.5", "[0, 0.5, 1]"]),
        "filter: mlp": st.sampled_from(["filter: mlp", "filter: layers.0", "filter: norm"]),
        "seed: 0": st.sampled_from(["seed: 0", "seed: 7"]),
        "merge_method: ties": st.sampled_from(["merge_method: ties", "merge_method: dare_linear"]),
        "{model: code,": st.sampled_from(["{model: code,", "{model: math,"]),
        "  final:\n": st.sampled_from(["  final:\n", "  final:\n    dtype: bfloat16\n"]),
        "{model: base}, {model: skills}": st.sampled_from(
            ["{model: base}, {model: skills}", "{model: base}, {model: code}"]
        ),
    }
)


def wording(edit: dict[str, str]) -> str:
    text = RECIPE.replace("vars: {density: 0.5}\n", "")
    for old, new in edit.items():
        text = edited(old, new, text)
    return text


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(first=edits, second=edits, cached=st.integers(0, 3))
def test_a_tensor_has_a_reason_if_and_only_if_its_key_changed(
    models: Path, first: dict[str, str], second: dict[str, str], cached: int
) -> None:
    """Whatever is edited: changed is whose key did; what a parameter is said to have been, it was; all that runs says why."""
    before, after = made(models, wording(first)), made(models, wording(second))
    found = changes(before, after)
    old = keys(before[1])
    for (step, name), key in keys(after[1]).items():
        causes = found.of(step, name)
        assert bool(causes) == (old[step, name] != key)
        for reason in causes.own:
            assert reason.kind != "parameter" or reason.old != reason.new
            assert reason.kind != "other", str(reason)

    graph = after[1].graph
    known = Known(
        frozenset(key for key in sorted(it.key or "" for it in graph if it.kind != "load") if hash_of(key) < cached)
    )
    targets = [tensor.node for tensor in after[1].outputs[0].tensors]
    situation = Situation(*after, known, frozenset(needed_nodes(graph, targets, known)))
    running = must_run(situation, found)
    assert all(causes for tensors in running.values() for causes in tensors.values())
    assert set(running["final"]) >= {
        name for name in found.found["final"] if graph[node(after[1], name)].key not in known.tensors
    }


def hash_of(key: str) -> int:
    """Which of eight parts of all keys a key is in."""
    return int(key[:1], 16) // 2


def node(compiled: Compiled, name: str) -> int:
    return compiled.results["final"].tensors[name].node


def test_without_a_history_it_is_the_first_run(models: Path) -> None:
    """Every tensor says so, and nothing else."""
    recipe, compiled = made(models)
    found = must_run(Situation(recipe, compiled, Known(), frozenset(range(len(compiled.graph)))), None)
    said = {line for tensors in found.values() for causes in tensors.values() for line in causes.lines()}
    assert said == {"first run of this recipe on this machine"}


def chain(steps: int, t: float) -> str:
    """A chain of slerps, the first of them at `t`."""
    lines = ["mergeflow: 1", "models: {base: ./base, math: ./math}", "steps:"]
    for number in range(steps):
        previous = f"s{number - 1}" if number else "math"
        value = 0.5 if number else t
        lines.append(
            f"  s{number}: {{merge_method: slerp, base_model: base, models: [{{model: {previous}}}], parameters: {{t: {value}}}}}"
        )
    return "\n".join([*lines, f"outputs: {{s{steps - 1}: {{path: ./out}}}}\n"])


def test_a_chain_of_any_length(tmp_path: Path) -> None:
    """1,500 steps, the first of them changed: the last names the cause, and no recursion runs out."""
    for seed, name in enumerate(("base", "math")):
        write_model(tmp_path / name, {"model.norm.weight": torch.full((4,), 1.0 + seed)})
    before, after = made(tmp_path, chain(1500, 0.4)), made(tmp_path, chain(1500, 0.3))
    found = changes(before, after)
    assert lines(found.found["s1499"])["model.norm.weight"] == ["because s1498 changed: s0.parameters.t 0.4 -> 0.3"]
    way = tensors_on_the_way(*after, "s1499", "model.norm.weight")
    assert len(way) == 1500
    assert len(chain_formula(*after, way)) < 1100


class TestSums:
    def test_equal_reasons_are_counted(self, models: Path) -> None:
        """One line for a number, with how many tensors it concerns."""
        found = changes(made(models), made(models, density="0.4")).found["skills"]
        (line,) = summed_up(list(found.values()))
        assert line == f"skills.models[0].parameters.density 0.5 -> 0.4 ({len(found)} tensors)"

    def test_a_gradient_is_summed_up_as_it_is_written(self, models: Path) -> None:
        """Not a line for each layer."""
        after = made(models, edited("[0.1, 0.5, 0.9]", "[0.2, 0.6, 1]"))
        found = changes(made(models), after).found["final"]
        (line,) = summed_up(list(found.values()))
        assert line.startswith("final.parameters.t {mlp: 0.2, [0.1, 0.5, 0.9]} -> {mlp: 0.2, [0.2, 0.6, 1]} (")


class TestFile:
    def test_what_is_written_is_read(self, models: Path, tmp_path: Path) -> None:
        """All of it."""
        recipe, compiled = made(models)
        history = history_of(recipe, compiled)
        write_history(tmp_path / "state", recipe, history)
        assert read_history(tmp_path / "state", recipe) == history

    def test_a_state_folder_that_cannot_be_written(self, models: Path, tmp_path: Path) -> None:
        """No reason for a run to fail."""
        recipe, compiled = made(models)
        (tmp_path / "state").write_text("a file")
        write_history(tmp_path / "state", recipe, history_of(recipe, compiled))
        assert read_history(tmp_path / "state", recipe) is None

    @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    @given(place=st.floats(0, 1, exclude_max=True), byte=st.sampled_from(b'0-[{"}],9a\x00'), cut=st.booleans())
    def test_a_damaged_one(self, models: Path, place: float, byte: int, cut: bool) -> None:
        """Read as far as it makes sense, or not at all; never an error."""
        text = encoded(history_of(*made_once(models)))
        at = int(place * len(text))
        damaged = text[:at] if cut else text[:at] + bytes([byte]) + text[at + 1 :]
        found = decoded(damaged)
        assert found is None or isinstance(found, History)
        assert not cut or found is None

    @pytest.mark.parametrize(
        "text", [b"", b"[]", b"{}", b"null", b'{"format": 1}', b"[" * 100_000, b'{"format": 2, "names": 3}']
    )
    def test_anything_else(self, text: bytes) -> None:
        """An older format, another file: not known."""
        assert decoded(text) is None

    def test_more_names_than_there_are(self, models: Path) -> None:
        """A damaged file does not fill the memory."""
        text = encoded(history_of(*made(models)))
        assert decoded(text.replace(b'"tensors":[[', b'"tensors":[[0,999999999999],[', 1)) is None


_made: dict[Path, Made] = {}


def made_once(folder: Path) -> Made:
    return _made.setdefault(folder, made(folder))


def test_the_models_of_these_tests(models: Path) -> None:
    """They are where the recipe says."""
    assert all((models / name).is_dir() for name in NAMES)
