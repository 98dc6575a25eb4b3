"""Several merges in one mergekit file: documents with names are steps, the one without is the final merge."""

from __future__ import annotations

import pytest
from recipe_texts import TWO, marked, messages, places, read

from mergeflow.recipe.document import MOST_VALUES
from mergeflow.recipe.records import AdapterReference, ModelReference, StepReference


class TestRightFiles:
    @pytest.mark.parametrize("is_reversed", [False, True])
    def test_a_document_may_read_another(self, is_reversed: bool) -> None:
        """A name means the result of its document, whether that comes before or after; it is no output then."""
        documents = TWO.split("---\n")
        recipe = read("---\n".join(reversed(documents) if is_reversed else documents))
        assert (recipe.form, recipe.problems) == ("mergekit", ())
        assert {step.name for step in recipe.steps} == {"halfway", "merge"}
        final = recipe.step("merge")
        assert final.base == StepReference("halfway")
        assert [entry.source for entry in final.inputs] == [StepReference("halfway"), ModelReference("/m/gamma")]
        assert [output.step for output in recipe.outputs] == ["merge"]

    def test_names_stand_in_fields_of_models_alone(self) -> None:
        """A merge called like a method, a format, a filter or a tokenizer's source changes none of these."""
        for name in ("linear", "float32", "mlp", "auto", "union"):
            recipe = read(
                f"name: {name}\nmerge_method: linear\nmodels: [{{model: /m/a}}]\n---\n"
                f"merge_method: linear\nmodels: [{{model: {name}}}]\ndtype: float32\nchat_template: auto\n"
                "tokenizer: {source: union}\nparameters: {weight: {filter: mlp, value: 1}}\n"
            )
            assert recipe.problems == ()
            final = recipe.step("merge")
            assert final.inputs[0].source == StepReference(name)
            assert (final.merge_method, final.dtype, final.chat_template) == ("linear", "float32", "auto")
            assert final.vocabulary is not None
            assert final.vocabulary.source == "union"

    def test_names_in_slices_modules_and_vocabularies(self) -> None:
        """Wherever a model may stand, a document's name may; inside a mapping too."""
        recipe = read(
            "name: x\nmerge_method: l\nmodels: [{model: /m/a}]\n---\n"
            "name: y\nmerge_method: l\nslices: [{sources: [{model: x, layer_range: [0, 1]}], base_model: x}]\n---\n"
            "name: z\nmerge_method: l\nmodules: {text: {models: [{model: {model: x}}]}}\n---\n"
            "merge_method: l\nmodels: [{model: y}, {model: z}]\n"
            "tokenizer: {source: x, tokens: {t: {source: {kind: model_token, model: x, token: u}}}}\n"
        )
        assert recipe.problems == ()
        for step in recipe.steps[1:3]:
            assert step.sources() == (StepReference("x"),)
        vocabulary = recipe.steps[3].vocabulary
        assert vocabulary is not None
        assert vocabulary.source == StepReference("x")

    def test_a_result_with_an_adapter(self) -> None:
        """`halfway+lora` is the result with the adapter's delta added, by steps that stand in no file."""
        recipe = read(TWO.replace("models: [{model: halfway}", "models: [{model: halfway+/m/lora}"))
        assert recipe.problems == ()
        final = recipe.step("merge")
        assert final.inputs[0].source == StepReference("halfway+/m/lora")
        added = recipe.step("halfway+/m/lora")
        delta = recipe.step("halfway+/m/lora: the delta of /m/lora")
        assert (added.merge_method, added.base) == ("task_arithmetic", StepReference("halfway"))
        assert [entry.source for entry in added.inputs] == [StepReference(delta.name)]
        assert delta.inputs[0].source == ModelReference("", adapters=(AdapterReference("/m/lora"),))
        assert [output.step for output in recipe.outputs] == ["merge"]

    def test_outputs_are_the_final_merge_and_what_nobody_reads(self) -> None:
        """The final merge is the first output; a named merge that no other reads is one too."""
        recipe = read("name: spare\nmerge_method: l\nmodels: [{model: /m/a}]\n---\n" + TWO)
        assert [output.step for output in recipe.outputs] == ["merge", "spare"]

    def test_all_may_have_names(self) -> None:
        """Without a final merge, what nobody reads is written."""
        recipe = read(TWO.replace("---\n", "---\nname: end\n"))
        assert [output.step for output in recipe.outputs] == ["end"]

    def test_one_document_with_a_name(self) -> None:
        """A name alone is the step's name; every model is a checkpoint."""
        recipe = read("name: mine\nmerge_method: l\nmodels: [{model: mine}]\n")
        assert recipe.problems == ()
        assert (recipe.steps[0].name, recipe.steps[0].path) == ("mine", "")
        assert recipe.steps[0].inputs[0].source == ModelReference("mine")
        assert [output.step for output in recipe.outputs] == ["mine"]

    @pytest.mark.parametrize(
        "text", ["---\n" + TWO, TWO + "---\n", TWO + "---\n# nothing\n...\n", "--- ~\n---\n" + TWO]
    )
    def test_empty_documents_do_not_count(self, text: str) -> None:
        """A document without anything in it is ignored."""
        recipe = read(text)
        assert recipe.problems == ()
        assert [step.path for step in recipe.steps] == ["documents[0]", "documents[1]"]

    def test_one_document_keeps_its_paths(self) -> None:
        """Beside empty documents, the paths of the one that is not are those of a file of one."""
        assert read("---\nmerge_method: l\nmodels: [{model: a}]\n---\n").steps[0].path == ""

    def test_the_final_merge_has_a_name_of_its_own(self) -> None:
        """A document may be called as the final merge is called here."""
        recipe = read(
            "name: merge\nmerge_method: l\nmodels: [{model: /m/a}]\n---\nmerge_method: l\nmodels: [{model: merge}]\n"
        )
        assert recipe.problems == ()
        assert [step.name for step in recipe.steps] == ["merge", "merge_2"]

    @pytest.mark.parametrize(
        ("reference", "message"),
        [("halfway@x", "without revisions"), ("halfwey", "did you mean the step 'halfway'?")],
    )
    def test_doubtful_names(self, reference: str, message: str) -> None:
        """A revision of a document's result, or a word near its name, is a warning: the file runs as it did."""
        recipe = read(TWO.replace("models: [{model: halfway}", f"models: [{{model: {reference}}}"))
        assert messages(recipe) == []
        assert [message in warning for warning in messages(recipe, "warning")] == [True]


class TestMistakes:
    @pytest.mark.parametrize(
        ("text", "message", "path"),
        [
            ("N: x\nM\n---\nN: ▶x\nM\n", "the name 'x' is given twice (first in line 1)", "documents[1].name"),
            ("M\n---\n▶M\n", "two documents have no name", "documents[1]"),
            ("N: ▶../x\nM\n", "'../x' cannot be a name", "name"),
            ("N: x\nM\n---\nN: ▶/tmp/x\nM\n", "'/tmp/x' cannot be a name", "documents[1].name"),
            ("N: ▶[x]\nM\n", "a list cannot be a name", "name"),
            ("N: x\nM\n---\n▶[1]\n", "a recipe is a mapping", "documents[1]"),
            ("N: x\nM\n---\nM\ndtype: ▶int8\n", "not a number format", "documents[1].dtype"),
            ("N: x\nM\n---\nM\nbase_model: ▶!!python/x y\n", "the tag", "documents[1].base_model"),
            (
                "mergeflow: 1\nsteps: {a: {task_vector: {model: ./a, base: ./b}}}\n---\n▶M\n",
                "is one document",
                "documents[1]",
            ),
            (
                "N: x\nmerge_method: l\nmodels: [{model: ▶y}]\n---\nN: y\nmerge_method: l\nmodels: [{model: x}]\n",
                "steps form a cycle: x -> y -> x",
                "documents[0].models[0].model",
            ),
            (
                "N: x\nmerge_method: l\nmodels: [{model: /m/a}]\nbase_model: ▶x\n---\nM\n",
                "a step cannot read itself",
                "documents[0].base_model",
            ),
        ],
    )
    def test_is_one_error(self, text: str, message: str, path: str) -> None:
        """A mistake is one error, at its place, under the path of its document."""
        text = text.replace("N:", "name:").replace("M\n", "merge_method: l\nmodels: [{model: /m/a}]\n")
        text, expected = marked(text)
        recipe = read(text)
        assert [message in problem.message for problem in recipe.problems] == [True], recipe.problems
        assert (recipe.problems[0].path, places(recipe)) == (path, expected)

    def test_a_key_twice(self) -> None:
        """What mergekit ignores is a warning under the path of its document."""
        recipe = read(TWO + "parameters: {t: 0.5}\n")
        assert [(problem.severity, problem.path) for problem in recipe.problems] == [
            ("warning", "documents[1].parameters")
        ]

    def test_aliases_end_with_their_document(self) -> None:
        """An anchor is known in its own document alone."""
        recipe = read(
            "name: &a x\nmerge_method: l\nmodels: [{model: /m/a}]\n---\nmerge_method: *a\nmodels: [{model: /m/a}]\n"
        )
        assert ["no value above is marked '&a'" in message for message in messages(recipe)] == [True]

    def test_many_documents_are_one_size(self) -> None:
        """The limit on values, aliases written out, is for the file, not for each document."""
        bomb = "a: &a [" + "1, " * 999 + "1]\nb: [" + "*a, " * 59 + "*a]\n"
        assert MOST_VALUES < 2 * 61_000
        assert ["more than" in message for message in messages(read(f"{bomb}---\n{bomb}"))] == [True]
