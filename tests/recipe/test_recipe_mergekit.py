"""mergekit files: they run unchanged, their authors are told what is ignored, and what is missing here is one error."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from recipe_texts import MERGEKIT, at, marked, messages, places, read

from mergeflow.recipe.read import read_recipe
from mergeflow.recipe.records import Branch, Input, ModelReference, Output, Setting

CASES = next(
    (
        folder
        for folder in (parent / "shared/golden/cases" for parent in Path(__file__).resolve().parents)
        if folder.is_dir()
    ),
    None,
)


class TestRightFiles:
    def test_a_merge_is_a_recipe_of_one_step(self) -> None:
        """A mergekit configuration is the step `merge` and its output, without a path."""
        recipe = read(MERGEKIT)
        assert (recipe.form, recipe.problems) == ("mergekit", ())
        (step,) = recipe.steps
        weight = Setting((Branch(0.3, None, at(7, 13)),), at(7, 13))
        assert (step.name, step.merge_method, step.dtype) == ("merge", "slerp", "float32")
        assert step.base == ModelReference("models/a")
        assert step.inputs == (
            Input(ModelReference("models/a"), {}, at(4, 10)),
            Input(ModelReference("models/b"), {"weight": weight}, at(5, 10)),
        )
        assert recipe.outputs == (Output("merge", position=at(1, 1)),)

    def test_paths_start_in_the_current_folder(self, tmp_path: Path) -> None:
        """As in mergekit, paths start in the current folder; the file's own folder is tried after it."""
        recipe = read_recipe("sub/merge.yml", text=MERGEKIT, working_folder=tmp_path)
        assert (recipe.folder, recipe.fallback_folder) == (tmp_path, tmp_path / "sub")

    def test_names_are_checkpoints_only(self) -> None:
        """A mergekit file has no names of its own: every text is a model, `${}` means nothing."""
        recipe = read("merge_method: linear\nmodels: [{model: merge}, {model: '${x}'}]")
        assert [entry.source for entry in recipe.steps[0].inputs] == [ModelReference("merge"), ModelReference("${x}")]
        assert recipe.problems == ()

    def test_hub_ids_and_mappings(self) -> None:
        """A model may have a revision, in a text or spelled out."""
        text = """
            merge_method: linear
            models:
              - model: org/a@v1
              - model: {model: org/b@v2}
              - model: {model: {path: org/c, revision: v3}}
              - model: {path: ./a+b@c}
            """
        recipe = read(text)
        assert recipe.problems == ()
        assert [str(entry.source) for entry in recipe.steps[0].inputs] == [
            "org/a@v1",
            "org/b@v2",
            "org/c@v3",
            "./a+b@c",
        ]
        assert recipe.steps[0].inputs[3].source == ModelReference("./a+b@c")

    @pytest.mark.parametrize(
        "field", ["slices: []", "modules: {}", "tokenizer:", "tokenizer_source: ''", "chat_template: ''", "dtype: ''"]
    )
    def test_empty_fields_are_absent(self, field: str) -> None:
        """mergekit takes an empty field for an absent one."""
        assert read(MERGEKIT.replace("dtype: float32", field)).problems == ()

    @pytest.mark.parametrize("name", ["torch.bfloat16", "float64", "float16"])
    def test_dtypes(self, name: str) -> None:
        """A dtype may have torch's prefix."""
        recipe = read(MERGEKIT.replace("float32", name))
        assert recipe.steps[0].dtype == name.removeprefix("torch.")


class TestWhatMergekitIgnores:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                "merge_method: l\nmodels: [{model: a}]\n▶paramaters: {t: 1}",
                "unknown field 'paramaters' is ignored, as in mergekit; did you mean 'parameters'?",
            ),
            (
                "merge_method: l\nmodels: [{model: a}]\n▶include: x",
                "unknown field 'include' is ignored, as in mergekit",
            ),
            ("merge_method: l\nmodels: [{model: a, ▶wieght: 1}]", "unknown field 'wieght' is ignored"),
            ("merge_method: l\nmodels: [{model: a, ▶parametres: 1}]", "did you mean 'parameters'?"),
            ("merge_method: l\nmodels: [{model: {model: a, ▶revison: x}}]", "did you mean 'revision'?"),
            (
                "merge_method: l\nmodels: [{model: a}]\nparameters: {t: {value: 1, ▶fliter: x}}",
                "did you mean 'filter'?",
            ),
            ("merge_method: l\nmodels: [{model: a}]\n▶merge_method: l", "is written twice (first in line 1)"),
            ("merge_method: l\nmodels: [{model: a}]\n▶cache: never", "unknown field 'cache' is ignored"),
            ("merge_method: l\nmodels: [{model: a}]\n▶task_vector: {}", "unknown field 'task_vector' is ignored"),
            (
                "merge_method: l\nmodels: [{model: a}]\nparameters: {t: [{value: ▶1}, {value: 2, filter: x}]}",
                "the filter 'x' is never reached",
            ),
        ],
    )
    def test_is_a_warning(self, text: str, message: str) -> None:
        """What mergekit ignores is a warning with the nearest name, and the file still runs."""
        text, expected = marked(text)
        recipe = read(text)
        assert [(message in problem.message, problem.severity) for problem in recipe.problems] == [(True, "warning")]
        assert places(recipe) == expected
        assert len(recipe.steps) == len(recipe.outputs) == 1

    def test_an_unknown_field_is_not_read(self) -> None:
        """A mistyped field does nothing, as in mergekit: the result must be the same."""
        recipe = read("merge_method: l\nmodels: [{model: a}]\nparamaters: {t: 1}")
        assert recipe.steps[0].parameters == {}

    def test_the_last_of_two_keys_counts(self) -> None:
        """Of a key written twice mergekit takes the last."""
        recipe = read("merge_method: a\nmodels: [{model: a}]\nmerge_method: b")
        assert recipe.steps[0].merge_method == "b"


class TestMistakes:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("▶models: [{model: a}]", "'merge_method' is missing"),
            ("▶merge_method: l", "'models' is missing"),
            ("merge_method: l\nmodels: ▶[]", "'models' is empty"),
            ("merge_method: l\nmodels: [▶a]", "write {model: a}"),
            ("merge_method: l\nmodels: [{model: ▶a+b+c}]", "more than one '+'"),
            ("merge_method: l\nmodels: [{model: a}]\ndtype: ▶int8", "'int8' is not a number format for weights"),
            ("merge_method: l\nmodels: [{model: a}]\nparameters: {t: ▶null}", "no value"),
            ("merge_method: l\nmodels: [{model: a}]\nparameters: {t: [▶[1]]}", "a list inside a list"),
            ("merge_method: l\nmodels: [{model: a}]\nparameters: {t: ▶{vlaue: 1}}", "did you mean it by 'vlaue'?"),
        ],
    )
    def test_is_one_error(self, text: str, message: str) -> None:
        """A mistake is exactly one error at its place."""
        text, expected = marked(text)
        recipe = read(text)
        assert len(recipe.problems) == 1, recipe.problems
        assert message in recipe.problems[0].message
        assert recipe.problems[0].severity == "error"
        assert places(recipe) == expected

    def test_a_mistyped_method_field(self) -> None:
        """A mistyped required field is named as ignored, and as missing."""
        recipe = read("merge_metod: l\nmodels: [{model: a}]")
        assert recipe.form == "mergekit"
        assert messages(recipe, "warning") == [
            "unknown field 'merge_metod' is ignored, as in mergekit; did you mean 'merge_method'?"
        ]
        assert messages(recipe) == ["'merge_method' is missing"]

    def test_overrides_have_nothing_to_override(self) -> None:
        """A mergekit file has no variables: an override is an error, not ignored."""
        recipe = read(MERGEKIT, {"t": "0.3"})
        assert messages(recipe) == ["--set 't=0.3': a mergekit file has no variables (a native recipe has 'vars:')"]


@pytest.mark.skipif(CASES is None, reason="the golden cases are not beside this checkout")
class TestGoldenCases:
    def cases(self) -> list[Path]:
        assert CASES is not None
        return sorted(CASES.glob("*/config.yml"))

    def test_no_case_has_a_problem(self) -> None:
        """Every golden configuration is read without an error or a warning, and says what YAML says."""
        assert len(self.cases()) > 60
        for path in self.cases():
            recipe = read_recipe(path)
            assert recipe.problems == (), path
            assert len(recipe.steps) == 1

    def test_values_are_what_yaml_says(self) -> None:
        """Parameters of the golden configurations are the values PyYAML reads."""
        for path in self.cases():
            raw = yaml.safe_load(path.read_text())
            for step in read_recipe(path).steps:
                assert [str(entry.source) for entry in step.inputs] == [e["model"] for e in raw.get("models", [])]
                for part, written in zip(step.slices, raw.get("slices", []), strict=True):
                    sources = [(str(entry.source), list(entry.layers or ())) for entry in part.inputs]
                    assert sources == [(source["model"], source["layer_range"]) for source in written["sources"]]
                for name, setting in step.parameters.items():
                    assert plain(setting) == raw["parameters"][name]


def plain(setting: Setting) -> object:
    """A setting as YAML had it."""

    def value(branch: Branch) -> object:
        return list(branch.value) if isinstance(branch.value, tuple) else branch.value

    if len(setting.branches) == 1 and setting.branches[0].filter is None:
        return value(setting.branches[0])
    return [
        {"value": value(branch), **({"filter": branch.filter} if branch.filter is not None else {})}
        for branch in setting.branches
    ]
