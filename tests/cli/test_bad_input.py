"""Every way in which a recipe can be wrong: one clear message at its place, exit 1, nothing written or damaged.

Each recipe here goes through `validate`, `plan` and two runs, with an earlier output at the place of the first: they
must say the same, and every file must be as it was (`refusals.py`).
"""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import mergeflow, write
from recipes import LINEAR, TIES
from refusals import refused, says
from tiny_checkpoints import raw_bytes

pytestmark = pytest.mark.usefixtures("workplace", "out")


class TestText:
    """What is no recipe at all."""

    def test_not_yaml(self) -> None:
        """A bracket that is never closed: the place, and what the parser missed."""
        refused("mergeflow: 1\nsteps: {a: [1, 2\n▶", "not YAML: while parsing a flow sequence: did not find expected…")

    def test_a_variable_without_quotes(self) -> None:
        """The commonest reason for a mapping that is no YAML is named."""
        refused(
            LINEAR.replace("weight: 3", "weight: $▶{w}"),
            'not YAML:… inside { } or [ ], a variable is written in quotes: "${name}"',
        )

    def test_a_tab(self) -> None:
        """YAML refuses tabs for indentation, and so do we, with the place."""
        refused("mergeflow: 1\nsteps:\n▶\tx: 1\n", "not YAML:…")

    def test_empty(self) -> None:
        """A file without a recipe in it."""
        refused("▶", "the file is empty")

    def test_only_comments(self) -> None:
        """The same, however long."""
        refused("▶# to be done\n", "the file is empty")

    def test_a_list(self) -> None:
        """A list is no recipe."""
        refused("▶- merge_method: linear\n", "a recipe is a mapping of fields to values, not a list")

    def test_binary(self) -> None:
        """A checkpoint passed for a recipe: where the text ends to be text."""
        Path("recipe.yaml").write_bytes(b"mergeflow: 1\nx: \xff\xfe\n")
        says(mergeflow("run", "recipe.yaml", "out"), 1, "recipe.yaml:2:4: error: the file is not UTF-8 text:…")

    def test_weights_for_a_recipe(self) -> None:
        """Not read to its end, whatever its size."""
        with Path("model.safetensors").open("wb") as file:
            file.truncate(1 << 40)
        says(
            mergeflow("run", "model.safetensors", "out"), 1, "model.safetensors:1:1: error: a recipe is a YAML file of…"
        )

    def test_no_such_file(self) -> None:
        """A recipe that is not there."""
        for command in ("validate", "plan", "run", "explain"):
            says(mergeflow(command, "nowhere.yaml"), 1, "nowhere.yaml:1:1: error: there is no such file")

    def test_a_folder_for_a_recipe(self) -> None:
        """A model's folder passed for a recipe."""
        for command in ("validate", "plan", "run", "explain"):
            says(mergeflow(command, "a"), 1, "a:1:1: error: a recipe is a YAML file; this is a folder")

    def test_several_documents(self) -> None:
        """Mistakes in a file of several merges stand under the path of their document."""
        refused(
            "merge_method: linear\nmodels: [{model: ./a, parameters: {weight: 1}}]\n---\n"
            "▶merge_method: linear\nmodels: [{model: ./a, parameters: {weight: 1}}]\ndtype: ▶bf16\n",
            "documents[1]: two documents have no name: only the final one may have none (the other starts in line 1)",
            "documents[1].dtype: 'bf16' is not a number format for weights; did you mean 'bfloat16'?",
        )


class TestNames:
    """Names that nothing has: the place, and the nearest name."""

    def test_unknown_field(self) -> None:
        """Of a step, of the recipe and of an output."""
        refused(
            LINEAR + "    ▶outdtype: float16\n▶output: {soup: ./elsewhere}\n",
            "steps.soup.outdtype: unknown field 'outdtype'; did you mean 'out_dtype'?",
            "output: unknown field 'output'; did you mean 'outputs'?",
        )

    def test_unknown_method(self) -> None:
        """With the nearest method."""
        refused(
            LINEAR.replace("linear", "▶lineer"),
            "steps.soup.merge_method: there is no merge method 'lineer'; did you mean 'linear'?",
        )

    def test_unknown_method_like_none(self) -> None:
        """With all methods, when none is near."""
        refused(
            LINEAR.replace("linear", "▶frankenmerge"),
            "steps.soup.merge_method: there is no merge method 'frankenmerge'; the methods are linear, …",
        )

    def test_unknown_parameter(self) -> None:
        """Under a model and of the step."""
        refused(
            TIES.replace("c, parameters: {weight: 0.4, density: 0.5", "c, parameters: {weight: 0.4, densty: ▶0.5")
            + "    parameters: {lamda: ▶1}\n",
            "steps.final.models[1].parameters.densty: ties has no parameter 'densty'; did you mean 'density'?",
            "steps.final.parameters.lamda: ties has no parameter 'lamda'; did you mean 'lambda'?",
        )

    def test_parameter_of_another_method(self) -> None:
        """With what this method has instead."""
        text = (
            LINEAR.replace("linear", "slerp\n    base_model: a")
            .replace("weight: 3", "weight: ▶3")
            .replace("weight: 1", "weight: ▶1")
        )
        refused(
            text + "    parameters: {t: 0.5}\n",
            "steps.soup.models[0].parameters.weight: slerp has no parameter 'weight'; there is only 't'",
            "steps.soup.models[1].parameters.weight: slerp has no parameter 'weight'; there is only 't'",
        )

    def test_parameter_that_nothing_sets(self) -> None:
        """A parameter without a default is asked for where it belongs."""
        refused(
            LINEAR.replace("b, parameters: {weight: 3}", "b, parameters: ▶{}"),
            "steps.soup.models[1].parameters.weight: linear needs the parameter 'weight' for model ./b, "
            "and nothing sets it",
        )

    def test_shared_parameter_under_a_model(self) -> None:
        """One value for the whole step cannot differ between models."""
        refused(
            LINEAR.replace("weight: 3", "weight: 3, normalize: ▶false"),
            "steps.soup.models[1].parameters.normalize: 'normalize' is one value for the whole step, and under a model "
            "nothing looks at it: move it to the step's parameters",
        )

    def test_unknown_variable(self) -> None:
        """With the nearest variable."""
        refused(
            LINEAR.replace("weight: 3", 'weight: ▶"${wieght}"') + "vars: {weight: 3}\n",
            "steps.soup.models[1].parameters.weight: unknown variable 'wieght'; did you mean 'weight'?",
        )

    def test_unknown_variable_on_the_command_line(self) -> None:
        """--set of a variable that the recipe does not have."""
        refused(
            LINEAR.replace("weight: 3", 'weight: "${weight}"') + "vars: ▶{weight: 3}\n",
            "--set 'wieght=4': the recipe has no variable 'wieght'; did you mean 'weight'?",
            options=["--set", "wieght=4"],
        )

    def test_broken_value_on_the_command_line(self) -> None:
        """--set of a value that is no YAML; what depends on it is not reported as well."""
        refused(
            LINEAR.replace("weight: 3", 'weight: "${weight}"') + "vars: {weight: ▶3}\n",
            "vars.weight: --set 'weight=[4': not YAML:…",
            options=["--set", "weight=[4"],
        )

    def test_unknown_step(self) -> None:
        """Used as a model and as an output."""
        refused(
            LINEAR
            + """\
  final:
    merge_method: slerp
    base_model: a
    models: [{model: ▶suop}]
    parameters: {t: 0.5}
outputs:
  ▶finale: ./elsewhere
""",
            "steps.final.models[0].model: no step, model or folder is called 'suop'; did you mean the step 'soup'?…",
            "outputs.finale: there is no step 'finale'; did you mean 'final'?",
        )

    def test_unknown_format(self) -> None:
        """bf16 and its like, in a step and in an output."""
        refused(
            LINEAR + "    dtype: ▶bf16\noutputs:\n  soup: {dtype: ▶int4}\n",
            "steps.soup.dtype: 'bf16' is not a number format for weights; did you mean 'bfloat16'?",
            "outputs.soup.dtype: 'int4' is not a number format for weights; the formats are …",
        )


class TestCycles:
    """Steps that need one another."""

    def test_two_steps(self) -> None:
        """The whole way round is said, once."""
        refused(
            """
mergeflow: 1
steps:
  x:
    merge_method: linear
    models: [{model: ./a, parameters: {weight: 1}}, {model: ▶y, parameters: {weight: 1}}]
  y:
    merge_method: linear
    models: [{model: x, parameters: {weight: 1}}, {model: ./b, parameters: {weight: 1}}]
""",
            "steps.x.models[1].model: steps form a cycle: x -> y -> x",
        )

    def test_a_step_that_reads_itself(self) -> None:
        """The shortest cycle."""
        refused(
            LINEAR.replace("model: b", "model: ▶soup"),
            "steps.soup.models[1].model: a step cannot read itself: soup -> soup",
        )

    def test_what_else_is_wrong_in_a_cycle_is_said_too(self) -> None:
        """A step on a cycle is checked like any other."""
        refused(
            LINEAR.replace("model: b", "model: ▶soup").replace("weight: 3", "weight: 3, wieght: ▶3"),
            "steps.soup.models[1].model: a step cannot read itself: soup -> soup",
            "steps.soup.models[1].parameters.wieght: linear has no parameter 'wieght'; did you mean 'weight'?",
        )


class TestAllAtOnce:
    """Whoever mends a recipe mends it once."""

    def test_many_mistakes_of_all_kinds(self) -> None:
        """Reader, models, methods, values, types and outputs: each once, in the order of the file."""
        refused(
            """
mergeflow: 1
models: {a: ./a, b: ▶./nowhere, c: ./c, deep: ./deep}
vars: {density: 0.5}
steps:
  skill:
    task_vector: {model: b, base: a}
  skills:
    merge_method: ties
    base_model: a
    models:
      - {model: skill, parameters: {weight: 0.6, density: ▶"${densty}"}}
      - {model: c, parameters: {weight: ▶heavy, density: ▶1.5, lamda: ▶1}}
  again:
    merge_method: ▶ites
    base_model: a
    models: [{model: c}]
  soup:
    merge_method: linear
    models:
      - {model: a, parameters: {weight: 1}}
      - {model: ▶deep, parameters: {weight: 1}}
  final:
    merge_method: slerp
    base_model: a
    models: [{model: ▶skill}]
    parameters: {t: 0.5}
outputs:
  skills: ./elsewhere/skills
  again: ./elsewhere/again
  soup: ./elsewhere/soup
  ▶finale: ./elsewhere/final
  ▶skill: ./elsewhere/skill
""",
            f"models.b: ./nowhere: no such folder: {Path.cwd()}/nowhere",
            "steps.skills.models[0].parameters.density: unknown variable 'densty'; did you mean 'density'?",
            "steps.skills.models[1].parameters.weight: 'heavy' is not a number",
            "steps.skills.models[1].parameters.density: density must be between 0 and 1, not 1.5",
            "steps.skills.models[1].parameters.lamda: ties has no parameter 'lamda'; did you mean 'lambda'?",
            "steps.again.merge_method: there is no merge method 'ites'; did you mean 'ties'?",
            "steps.soup.models[1].model: ./a has 2 layers in model.layers, ./deep has 3: …",
            "steps.final.models[0].model: slerp cannot mix weights and deltas: skill is a delta, ./a is weights",
            "outputs.finale: there is no step 'finale'; did you mean 'final'?",
            "outputs.skill: skill is a delta, not a model: add it to a base (task_arithmetic does) to write it",
        )

    def test_a_mergekit_file(self) -> None:
        """Errors and what mergekit ignores, in the order of the file, with paths as they are in it."""
        path = write(
            """
merge_method: ties
base_model: ./a
models:
  - model: ./nowhere
    parameters: {weight: 1, density: 1.5}
  - model: ./b
    parameters: {densty: 0.5}
parameters: {lambda: much}
tokenizer_sauce: base
"""
        )
        done = mergeflow("validate", path)
        says(
            done,
            1,
            f"recipe.yaml:4:12: error: models[0].model: ./nowhere: no such folder: {Path.cwd()}/nowhere",
            "recipe.yaml:5:38: error: models[0].parameters.density: density must be between 0 and 1, not 1.5",
            "recipe.yaml:7:17: error: models[1].parameters.weight: ties needs the parameter 'weight' for …",
            "recipe.yaml:7:26: warning: models[1].parameters.densty: ties has no parameter 'densty'; did you mean …",
            "recipe.yaml:8:22: error: parameters.lambda: 'much' is not a number",
            "recipe.yaml:9:1: warning: tokenizer_sauce: unknown field 'tokenizer_sauce' is ignored, as in …",
        )

    def test_the_earlier_output_is_untouched(self, out: Path, earlier_output: Path) -> None:
        """What `refused` relies on: the output that is there is a whole one, and stays byte for byte."""
        assert raw_bytes(out) == raw_bytes(earlier_output)
        assert {"model.safetensors", "mergeflow.lock.json", "config.json"} <= raw_bytes(out).keys()
        refused(LINEAR.replace("linear", "▶lineer"), "steps.soup.merge_method: there is no merge method 'lineer'; …")
        assert raw_bytes(out) == raw_bytes(earlier_output)
