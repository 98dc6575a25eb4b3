"""The native form: what a right recipe means, and what is said of a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipe_texts import DESIGN, at, marked, messages, places, read, step_with

from mergeflow.recipe.records import Branch, Input, ModelReference, Output, Setting, StepReference
from mergeflow.recipe.steps import WHAT_A_STEP_IS


class TestRightRecipes:
    def test_design_reads_without_a_problem(self) -> None:
        """The recipe in the design is a right one."""
        recipe = read(DESIGN)
        assert recipe.problems == ()
        assert (recipe.form, recipe.seed) == ("native", 0)

    def test_names_of_models_become_references(self) -> None:
        """`models` gives names to folders and hub ids, which steps then mean."""
        recipe = read(DESIGN)
        assert recipe.models == {
            "base": ModelReference("./models/base"),
            "math": ModelReference("./models/math"),
            "chat": ModelReference("org/chat-7b", "5a1c2e9"),
        }
        assert recipe.step("final").base == recipe.models["chat"]

    def test_a_task_vector_is_a_step_of_one_input_and_a_base(self) -> None:
        """`task_vector: {model, base}` has the shape of a merge of one model with a base."""
        step = read(DESIGN).step("math_skill")
        assert step.merge_method == "task_vector"
        assert step.inputs == (Input(ModelReference("./models/math"), {}, at(9, 26)),)
        assert step.base == ModelReference("./models/base")
        assert step.position("base_model") == at(9, 38)
        assert step.position("models[0].model") == at(9, 26)

    def test_a_step_stands_where_a_model_may(self) -> None:
        """A text that is a step's name is that step."""
        recipe = read(DESIGN)
        assert recipe.step("skills").inputs[0].source == StepReference("math_skill")
        assert recipe.step("skills").inputs[1].source == ModelReference("./models/code")

    def test_parameters_keep_their_value_and_place(self) -> None:
        """A setting knows its value, as YAML typed it, and where it stands."""
        parameters = read(DESIGN).step("final").parameters
        assert parameters == {"t": Setting((Branch((0, 0.5, 1), None, at(20, 21)),), at(20, 21))}

    def test_outputs(self) -> None:
        """An output has its folder, format, shard size and tokenizer."""
        chat = ModelReference("org/chat-7b", "5a1c2e9")
        expected = Output("final", "./out/final", "bfloat16", 5_000_000_000, chat, at(22, 3))
        assert read(DESIGN).outputs == (expected,)

    def test_every_value_of_a_step_has_its_place(self) -> None:
        """`Step.positions` finds each written field, and the nearest one around a field that is not written."""
        step = read(DESIGN).step("skills")
        assert step.positions[""] == at(10, 3)
        assert step.positions["models[1].parameters.density"] == at(15, 67)
        assert step.position("models[1].parameters.epsilon") == at(15, 44)
        assert step.position("dtype") == at(10, 3)

    def test_paths_start_in_the_recipes_folder(self, tmp_path: Path) -> None:
        """A native recipe's relative paths are relative to its own folder."""
        from mergeflow.recipe.read import read_recipe

        recipe = read_recipe("sub/r.yml", text=DESIGN, working_folder=tmp_path)
        assert recipe.folder == tmp_path / "sub"
        assert recipe.fallback_folder is None

    def test_step_fields(self) -> None:
        """dtype, out_dtype (with torch. or without) and cache are read; absent or null means the default."""
        body = "merge_method: linear\nmodels: [{model: ./a}]\ndtype: torch.bfloat16\nout_dtype:\ncache: never"
        step = read(step_with(body)).step("only")
        assert (step.dtype, step.out_dtype, step.cache) == ("bfloat16", None, "never")
        plain = read(step_with("merge_method: linear\nmodels: [{model: ./a}]")).step("only")
        assert (plain.dtype, plain.out_dtype, plain.cache) == (None, None, "auto")

    def test_without_outputs_the_unused_steps_are_written(self) -> None:
        """With no `outputs`, each step that no other step reads is one, to a folder given on the command line."""
        text = DESIGN[: DESIGN.index("outputs:")]
        assert read(text).outputs == (Output("final", position=at(16, 3)),)
        assert read(text + "outputs:\n").outputs == (Output("final", position=at(16, 3)),)

    @pytest.mark.parametrize(
        ("written", "expected"),
        [
            ("./out", Output("final", "./out")),
            ("", Output("final")),
            ("{path: }", Output("final")),
            ("{max_shard_size: 0}", Output("final", max_shard_bytes=0)),
            ("{max_shard_size: 1000}", Output("final", max_shard_bytes=1000)),
            ("{max_shard_size: 2.5GB}", Output("final", max_shard_bytes=2_500_000_000)),
            ("{tokenizer: {source: base}}", Output("final", tokenizer=ModelReference("./models/base"))),
            ("{tokenizer: {source: skills}}", Output("final", tokenizer=StepReference("skills"))),
            ("{tokenizer: {}}", Output("final")),
        ],
    )
    def test_outputs_may_be_short(self, written: str, expected: Output) -> None:
        """An output is a mapping, a path alone, or nothing."""
        recipe = read(DESIGN[: DESIGN.index("outputs:")] + f"outputs:\n  final: {written}\n")
        assert recipe.problems == ()
        (output,) = recipe.outputs
        assert output.position == at(22, 3)
        assert (output.step, output.path, output.max_shard_bytes, output.tokenizer) == (
            expected.step,
            expected.path,
            expected.max_shard_bytes,
            expected.tokenizer,
        )

    def test_names_may_look_like_other_values(self) -> None:
        """A step called `on` or `1` is a step: names are what was written, not what YAML makes of it."""
        text = """
            mergeflow: 1
            steps:
              on: {merge_method: linear, models: [{model: ./a}]}
              1: {merge_method: linear, models: [{model: on}]}
              2024-01-01: {merge_method: linear, models: [{model: 1}]}
            """
        recipe = read(text)
        assert recipe.problems == ()
        assert [str(step.sources()[0]) for step in recipe.steps] == ["./a", "on", "1"]

    def test_anchors_and_merge_keys(self) -> None:
        """YAML's own ways to say something once work: anchors, aliases and `<<`."""
        text = """
            mergeflow: 1
            steps:
              a: &a
                merge_method: linear
                models: &models [{model: ./x}, {model: ./y}]
                parameters: {weight: 1}
              b: {<<: *a, parameters: {weight: 2}}
            """
        recipe = read(text)
        assert recipe.problems == ()
        assert recipe.step("b").inputs == recipe.step("a").inputs
        assert recipe.step("b").parameters["weight"].branches[0].value == 2


MISTAKES = [
    pytest.param("▶sed: 3", "unknown field 'sed'; did you mean 'seed'?", id="unknown top-level field"),
    pytest.param("▶xyzzy: 3", "unknown field 'xyzzy'; the fields are mergeflow, seed", id="no field is near"),
    pytest.param("seed: ▶-1", "a seed is an integer from 0", id="negative seed"),
    pytest.param("seed: ▶true", "a seed is an integer from 0", id="boolean seed"),
    pytest.param("models: ▶[a]", "expected a mapping from names to values, found a list", id="models as a list"),
    pytest.param("models: {▶a/b: ./x}", "'a/b' cannot be a name", id="name with a slash"),
    pytest.param("models: {▶a: }", "no value: write a folder or a hub id", id="alias without a value"),
    pytest.param("models: {a: ▶x@1@2}", "'x@1@2' has more than one '@'", id="two revisions"),
    pytest.param("models: {a: ▶x+y+z}", "'x+y+z' has more than one '+'", id="two adapters"),
    pytest.param("models: {a: ▶'x@'}", "'x@' is not a model", id="empty revision"),
    pytest.param("models: {a: ▶''}", "'' is not a model", id="empty model"),
    pytest.param("models: {a: ▶{revision: x}}", "a model needs 'path' (or 'model')", id="reference without a path"),
    pytest.param("models: {a: {path: ./x, ▶revsion: y}}", "did you mean 'revision'?", id="unknown reference field"),
    pytest.param("models: {a: {model: ▶x@1@2}}", "'x@1@2' has more than one '@'", id="two revisions in a mapping"),
    pytest.param("models: {a: {model: ▶[x]}}", "expected a text, found a list", id="a list in a mapping"),
    pytest.param("models: {a: {path: ▶[x]}}", "expected a text, found a list", id="a list for a path"),
    pytest.param("models: {a: ▶[x]}", "expected a text, found a list", id="a list for a model"),
]


class TestMistakesAtTheTop:
    @pytest.mark.parametrize(("line", "message"), MISTAKES)
    def test_mistake(self, line: str, message: str) -> None:
        """A mistake in a top-level field is one error, at its place, that says what is right."""
        body = "steps: {final: {merge_method: linear, models: [{model: ./a}]}}\n"
        text, expected = marked(f"mergeflow: 1\n{body}{line}\n")
        recipe = read(text)
        assert len(recipe.problems) == 1
        assert message in recipe.problems[0].message
        assert places(recipe) == expected
        assert [step.name for step in recipe.steps] == ["final"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("▶steps: {a: {merge_method: linear, models: [{model: ./a}]}}", "starts with 'mergeflow: 1'"),
            ("mergeflow: ▶2\nsteps: {a: {merge_method: linear, models: [{model: ./a}]}}", "not '2'"),
            ("mergeflow: ▶true\nsteps: {a: {merge_method: linear, models: [{model: ./a}]}}", "not 'true'"),
            ("mergeflow: ▶[1]\nsteps: {a: {merge_method: linear, models: [{model: ./a}]}}", "not 'a list'"),
            ("▶mergflow: 1\nsteps: {a: {merge_method: linear, models: [{model: ./a}]}}", "did you mean 'mergeflow'?"),
            ("▶mergeflow: 1", "'steps' is missing"),
            ("mergeflow: 1\nsteps: ▶{}", "'steps' is empty"),
            ("mergeflow: 1\nsteps: ▶[]", "expected a mapping from names to values, found a list"),
            ("mergeflow: 1\nsteps: {▶a: }", "the step is empty"),
            ("mergeflow: 1\nsteps: {a: ▶linear}", "expected a mapping, found a text"),
        ],
    )
    def test_frame(self, text: str, message: str) -> None:
        """A recipe needs its version and its steps: what is missing of them is one error."""
        text, expected = marked(text)
        recipe = read(text)
        assert len(recipe.problems) == 1
        assert message in recipe.problems[0].message
        assert places(recipe) == expected


class TestMistakesInSteps:
    @pytest.mark.parametrize(
        ("body", "message", "path"),
        [
            ("merge_method: linear\n▶modles: [{model: ./a}]", "did you mean 'models'?", "modles"),
            ("▶merge_metod: linear\nmodels: [{model: ./a}]", "did you mean 'merge_method'?", "merge_metod"),
            ("merge_method: ▶[x]\nmodels: [{model: ./a}]", "expected a text, found a list", "merge_method"),
            ("merge_method: l\nmodels: ▶[]", "'models' is empty", "models"),
            ("merge_method: l\nmodels: ▶./a", "expected a list, found a text", "models"),
            ("merge_method: l\nmodels: [▶./a]", "write {model: ./a}", "models[0]"),
            ("merge_method: l\nmodels: [▶[./a]]", "expected a mapping, found a list", "models[0]"),
            ("merge_method: l\nmodels: [▶{parameters: {}}]", "'model' is missing", "models[0]"),
            ("merge_method: l\nmodels: [{▶modell: ./a}]", "did you mean 'model'?", "models[0].modell"),
            ("merge_method: l\nmodels: [{model: ▶a@b@c}]", "more than one '@'", "models[0].model"),
            ("merge_method: l\nmodels: [{model: ./a}]\nbase_model: ▶[x]", "expected a text", "base_model"),
            ("merge_method: l\nmodels: [{model: ./a}]\ndtype: ▶bf16", "did you mean 'bfloat16'?", "dtype"),
            ("merge_method: l\nmodels: [{model: ./a}]\ndtype: ▶fp16", "did you mean 'float16'?", "dtype"),
            ("merge_method: l\nmodels: [{model: ./a}]\ndtype: ▶flot32", "did you mean 'float32'?", "dtype"),
            ("merge_method: l\nmodels: [{model: ./a}]\nout_dtype: ▶int64", "the formats are float64", "out_dtype"),
            ("merge_method: l\nmodels: [{model: ./a}]\ncache: ▶allways", "did you mean 'always'?", "cache"),
            ("merge_method: l\nmodels: [{model: ./a}]\nparameters: ▶[t]", "expected a mapping", "parameters"),
            ("task_vector: ▶{model: ./a}", "'base' is missing: a task vector is model minus base", "task_vector"),
            ("task_vector: {▶modle: ./a, base: ./b}", "did you mean 'model'?", "task_vector.modle"),
            ("task_vector: ▶./a", "expected a mapping, found a text", "task_vector"),
            ("task_vector: {model: ./a, base: ./b}\n▶parameters: {x: 1}", "no place beside", "parameters"),
            ("task_vector: {model: ./a, base: ./b}\n▶merge_method: l", "no place beside", "merge_method"),
        ],
    )
    def test_mistake(self, body: str, message: str, path: str) -> None:
        """A mistake in a step is one error, with its place, its path, the rule and the nearest name."""
        text, expected = marked(step_with(body))
        recipe = read(text)
        assert len(recipe.problems) == 1, recipe.problems
        problem = recipe.problems[0]
        assert message in problem.message
        assert problem.path == f"steps.only.{path}"
        assert problem.severity == "error"
        assert places(recipe) == expected

    def test_a_step_without_a_method_points_at_its_name(self) -> None:
        """What is missing in a step is reported where the step begins."""
        text, expected = marked("mergeflow: 1\nsteps:\n  ▶only:\n    models: [{model: ./a}]\n")
        recipe = read(text)
        assert messages(recipe) == [f"a step needs {WHAT_A_STEP_IS}"]
        assert places(recipe) == expected

    def test_a_mistyped_field_hides_no_other_mistake(self) -> None:
        """A field near a known one is read as that one, so that mistakes under it are reported too."""
        text, expected = marked(
            step_with("merge_method: l\n▶modles: [{model: ./a, ▶paramters: {weight: [▶[1]]}}]\ndtype: ▶bf16")
        )
        recipe = read(text)
        assert places(recipe) == expected
        assert [step.name for step in recipe.steps] == ["only"]

    def test_a_broken_parameter_leaves_the_step_and_its_place(self) -> None:
        """A step with an unreadable parameter is returned without it; its place says that it was written."""
        recipe = read(step_with("merge_method: l\nmodels: [{model: ./a}]\nparameters: {t: , u: 1}"))
        step = recipe.step("only")
        assert list(step.parameters) == ["u"]
        assert "parameters.t" in step.positions


class TestNames:
    def test_a_mistyped_step_is_an_unknown_name(self) -> None:
        """A bare word near a step's name, and no folder, is an error that names the step."""
        text, expected = marked(DESIGN.replace("{model: skills}", "{model: ▶skils}"))
        recipe = read(text)
        assert "no step, model or folder is called 'skils'; did you mean the step 'skills'?" in messages(recipe)[0]
        assert places(recipe) == expected
        assert recipe.step("final").inputs[1].source == StepReference("skills")

    def test_a_mistyped_model_is_an_unknown_name(self) -> None:
        """A bare word near a name of `models` is an error that names it."""
        text, expected = marked(DESIGN.replace("base_model: chat", "base_model: ▶chta"))
        recipe = read(text)
        assert "did you mean the model 'chat'?" in messages(recipe)[0]
        assert places(recipe) == expected

    @pytest.mark.parametrize("word", ["gpt2", "./skils", "org/skils", "skils@main", "/skils", "~skils", ".skils"])
    def test_a_word_that_may_be_a_model_is_one(self, word: str) -> None:
        """A hub id, a path, or a name with a revision is never taken for a mistyped name."""
        recipe = read(DESIGN.replace("{model: skills}", f"{{model: {word}}}"))
        assert messages(recipe) == []
        assert isinstance(recipe.step("final").inputs[1].source, ModelReference)

    def test_a_step_is_never_meant_to_read_itself(self) -> None:
        """A bare word near the name of the step that reads it, and no other, is a model."""
        recipe = read(step_with("merge_method: l\nmodels: [{model: onli}]"))
        assert recipe.problems == ()

    def test_the_spelled_out_form_is_never_a_name(self) -> None:
        """`{path: skills}` is the folder or hub id of that name, even where a step has it."""
        recipe = read(DESIGN.replace("{model: skills}", "{model: {path: skills}}"))
        assert recipe.step("final").inputs[1].source == ModelReference("skills")

    def test_a_folder_of_that_name_is_meant(self, tmp_path: Path) -> None:
        """A bare word that is a folder beside the recipe is that folder, however near a step's name it is."""
        (tmp_path / "skils").mkdir()
        recipe = read(DESIGN.replace("{model: skills}", "{model: skils}"), folder=tmp_path)
        assert messages(recipe) == []
        assert recipe.step("final").inputs[1].source == ModelReference("skils")

    def test_steps_and_models_share_one_space_of_names(self) -> None:
        """A step called like a model is an error: the name would mean two things."""
        text, expected = marked(DESIGN.replace("  skills:\n", "  ▶math:\n").replace("{model: skills}", "{model: ./x}"))
        recipe = read(text)
        assert messages(recipe) == ["'math' is already a name under 'models': a step needs its own"]
        assert places(recipe) == expected

    def test_a_name_takes_no_revision(self) -> None:
        """`chat@v2`, where chat is a name of the recipe, is an error: the revision belongs under `models`."""
        text, expected = marked(DESIGN.replace("base_model: chat", "base_model: ▶chat@v2"))
        recipe = read(text)
        assert "takes no revision here" in messages(recipe)[0]
        assert places(recipe) == expected


class TestCycles:
    def recipe_of(self, **reads: str) -> str:
        lines = [f"  {name}: {{merge_method: l, models: [{{model: {source}}}]}}\n" for name, source in reads.items()]
        return "mergeflow: 1\nsteps:\n" + "".join(lines)

    def test_a_cycle_is_one_error_that_names_it(self) -> None:
        """Steps that read one another, a -> c -> b -> a, are one error, at the first of them."""
        recipe = read(self.recipe_of(x="./m", a="c", b="a", c="b"))
        assert messages(recipe) == ["steps form a cycle: a -> c -> b -> a"]
        assert places(recipe) == [(4, 41)]
        assert recipe.problems[0].path == "steps.a.models[0].model"

    def test_a_step_that_reads_itself(self) -> None:
        """A step cannot be its own input."""
        assert messages(read(self.recipe_of(a="a"))) == ["a step cannot read itself: a -> a"]

    def test_two_cycles_are_two_errors(self) -> None:
        """Cycles with no step in common are reported each."""
        recipe = read(self.recipe_of(a="b", b="a", c="d", d="c", e="a"))
        assert messages(recipe) == ["steps form a cycle: a -> b -> a", "steps form a cycle: c -> d -> c"]

    def test_cycles_that_share_a_step_are_one_error(self) -> None:
        """a -> b -> a and a -> c -> a are one tangle: the first way round is named."""
        text = self.recipe_of(a="b", b="a", c="a").replace("[{model: b}]", "[{model: b}, {model: c}]")
        assert messages(read(text)) == ["steps form a cycle: a -> b -> a"]

    def test_a_cycle_makes_no_other_noise(self) -> None:
        """Steps of a cycle that no output uses are reported for the cycle alone."""
        recipe = read(self.recipe_of(a="b", b="a", c="./m") + "outputs: {c: }\n")
        assert len(recipe.problems) == 1

    def test_a_base_can_close_a_cycle(self) -> None:
        """A cycle through a base points at the base."""
        text = "mergeflow: 1\nsteps:\n  a: {merge_method: l, base_model: b, models: [{model: ./m}]}\n"
        text += "  b: {task_vector: {model: ./m, base: a}}\n"
        recipe = read(text)
        assert messages(recipe) == ["steps form a cycle: a -> b -> a"]
        assert places(recipe) == [(3, 36)]

    def test_a_guess_makes_no_cycle(self) -> None:
        """A cycle that only a guess at a mistyped name would close is not reported."""
        recipe = read(self.recipe_of(first="./m", alpha="first", beta1="beta2x", beta2="beta1"))
        assert [message[:30] for message in messages(recipe)] == ["no step, model or folder is ca"]

    def test_a_long_chain_is_no_cycle(self) -> None:
        """Two thousand steps in a row are read, in any order of the file."""
        recipe = read(self.recipe_of(**{f"s{i}": f"s{i + 1}" for i in range(2000)}, s2000="./m"))
        assert recipe.problems == ()


class TestOutputs:
    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("{▶finl: ./x}", "there is no step 'finl'; did you mean 'final'?"),
            ("{▶zzz: ./x}", "there is no step 'zzz'; the steps are math_skill, skills, final"),
            ("{final: {▶pth: ./x}}", "did you mean 'path'?"),
            ("{final: {dtype: ▶int8}}", "'int8' is not a number format for weights"),
            ("{final: {max_shard_size: ▶5GX}}", "'5GX' is not a size"),
            ("{final: {max_shard_size: ▶-5}}", "'-5' is not a size"),
            ("{final: {max_shard_size: ▶[1]}}", "expected a text, found a list"),
            ("{final: {tokenizer: ▶chat}}", "write {source: chat}"),
            (
                "{final: {tokenizer: {source: ▶union}}}",
                "the tokenizer 'union' is part of a merge: write 'tokenizer' in the step",
            ),
            (
                "{final: {tokenizer: {source: chat, ▶tokens: {a: 1}}}}",
                "'tokens' is part of a merge: write 'tokenizer' in the step",
            ),
            ("{final: ▶[./x]}", "expected a mapping, found a list"),
            ("▶[final]", "expected a mapping from names to values, found a list"),
            ("{final: ./x, ▶skills: ./x/}", "'./x/' is also the folder of 'final'"),
        ],
    )
    def test_mistake(self, line: str, message: str) -> None:
        """A mistake in an output is one error at its place."""
        text, expected = marked(DESIGN[: DESIGN.index("outputs:")] + f"outputs: {line}\n")
        recipe = read(text)
        assert len(messages(recipe)) == 1, recipe.problems
        assert message in messages(recipe)[0]
        assert places(recipe)[0] == expected[0]

    def test_steps_that_no_output_uses(self) -> None:
        """A step that leads to no output is a warning at its name, and no error."""
        text, expected = marked(
            DESIGN.replace("outputs:\n  final:", "outputs:\n  skills:").replace("  final", "  ▶final")
        )
        recipe = read(text)
        assert messages(recipe) == []
        assert messages(recipe, "warning") == ["no output uses this step: it is not computed"]
        assert places(recipe) == expected


class TestAllAtOnce:
    def test_each_problem_is_one_line(self) -> None:
        """Keys and values with line breaks do not break a message in two."""
        recipe = read('mergeflow: 1\n"a\\nb": 1\nsteps: {"c\\nd": {merge_method: l, models: [{model: "e\\n@@"}]}}')
        assert len(recipe.problems) == 2
        assert all("\n" not in str(problem) for problem in recipe.problems)

    def test_every_mistake_in_one_reading(self) -> None:
        """Mistakes of every kind are reported together, in the order of the file, each at its place."""
        text, expected = marked(
            """\
            mergeflow: 1
            ▶sed: 3
            models:
              base: ./models/base
              math: ▶./models/math@v1@v2
            vars: {density: 0.5, ▶unused: 3}
            steps:
              skill:
                task_vector: {▶modle: math, base: ▶bse}
              skills:
                merge_method: ties
                base_model: base
                dtype: ▶bf16
                models:
                  - {model: ▶skil, parameters: {density: ▶"${densty}"}}
                  - {model: ./models/code, parameters: {weight: ▶[1, ▶[2]]}}
                ▶slices: [▶x]
              loop:
                merge_method: slerp
                models: [{model: ▶loop}]
                ▶merge_method: slerp
            outputs:
              ▶skils: {path: ./out, dtype: ▶int8}
            """.replace("▶[1, ▶[2]]", "[1, ▶[2]]")
        )
        recipe = read(text)
        assert places(recipe) == expected
        assert {step.name for step in recipe.steps} == {"skills", "loop"}
        assert [output.step for output in recipe.outputs] == ["skills"]
