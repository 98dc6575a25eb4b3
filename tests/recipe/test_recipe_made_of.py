"""Slices of layers, modules, and adapters: what a merge may be made of besides whole models."""

from __future__ import annotations

import textwrap

import pytest
from recipe_texts import MODULES, SLICED, marked, messages, places, read, step_with

from mergeflow.recipe.places import all_parameters, merged_sources, named_sources
from mergeflow.recipe.records import AdapterReference, ModelReference, StepReference


def native(body: str) -> str:
    return step_with(body)


@pytest.fixture(params=["mergekit", "native"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def as_form(body: str, form: str) -> str:
    return native(body) if form == "native" else textwrap.dedent(body)


class TestSlices:
    def test_what_they_say(self, form: str) -> None:
        """Each slice has its sources with their layers, its own base and its own parameters, in both forms."""
        recipe = read(as_form(SLICED, form))
        assert recipe.problems == ()
        (step,) = recipe.steps
        first, second = step.slices
        assert (step.inputs, step.modules) == ((), ())
        assert [(str(entry.source), entry.layers) for entry in first.inputs] == [
            ("org/base@v2", (0, 8)),
            ("org/tune-a+org/some-lora", (0, 8)),
        ]
        assert [entry.layers for entry in second.inputs] == [(8, 9)]
        assert (first.base, second.base) == (None, ModelReference("org/other"))
        assert list(first.parameters) == ["lambda"]
        assert first.inputs[1].parameters["weight"].branches[0].value == (0.2, 0.6)
        assert (step.dtype, step.out_dtype) == ("float32", "bfloat16")

    def test_places(self) -> None:
        """Every value of a slice has its place, under its path."""
        (step,) = read(SLICED).steps
        position = step.position("slices[0].sources[1].layer_range")
        assert position is not None
        assert (position.line, position.column) == (7, 22)
        assert step.position("slices[1].base_model") != step.position("base_model")
        assert [path for _, path in merged_sources(step)] == [
            "slices[0].sources[0].model",
            "slices[0].sources[1].model",
            "slices[1].sources[0].model",
            "slices[1].base_model",
            "base_model",
        ]
        assert [path for parameters, path in all_parameters(step) if parameters] == [
            "slices[0].sources[1].parameters",
            "slices[0].parameters",
            "parameters",
        ]

    def test_a_slice_of_no_layers(self) -> None:
        """As in mergekit, a range may be empty: the slice gives what stands before and behind the layers."""
        recipe = read("merge_method: l\nslices: [{sources: [{model: a, layer_range: [3, 3]}]}]")
        assert recipe.problems == ()
        assert recipe.steps[0].slices[0].inputs[0].layers == (3, 3)

    def test_residual_weight_is_a_warning(self, form: str) -> None:
        """A field that mergekit reads and never uses is said to do nothing."""
        body = "merge_method: l\nslices:\n- {sources: [{model: ./a, layer_range: [0, 1]}], ▶residual_weight: 0.5}"
        text, expected = marked(as_form(body, form))
        recipe = read(text)
        assert messages(recipe, "warning") == ["'residual_weight' has no effect (it has none in mergekit either)"]
        assert (places(recipe), len(recipe.steps)) == (expected, 1)

    def test_steps_and_variables_in_slices(self) -> None:
        """In a native recipe, a source may be a step, and a range may hold variables."""
        text = step_with("merge_method: l\nslices: [{sources: [{model: other, layer_range: ['${n}', 8]}]}]\n")
        recipe = read(f"vars: {{n: 2}}\n{text}  other: {{merge_method: l, models: [{{model: ./a}}]}}\n")
        assert recipe.problems == ()
        (entry,) = recipe.step("only").slices[0].inputs
        assert (entry.source, entry.layers) == (StepReference("other"), (2, 8))

    def test_a_cycle_through_a_slice(self) -> None:
        """A step that reads itself in a slice is an error, there."""
        text, expected = marked(
            step_with("merge_method: l\nslices: [{sources: [{model: ▶only, layer_range: [0, 8]}]}]\n")
        )
        recipe = read(text)
        assert messages(recipe) == ["a step cannot read itself: only -> only"]
        assert places(recipe) == expected

    @pytest.mark.parametrize(
        ("body", "message", "path"),
        [
            ("slices: [{sources: [{model: ./a, layer_range: ▶[4, 2]}]}]", "ends before it starts", "RANGE"),
            ("slices: [{sources: [{model: ./a, layer_range: ▶[1, 2, 3]}]}]", "3 values", "RANGE"),
            ("slices: [{sources: [{model: ./a, layer_range: ▶8}]}]", "expected a list, found a number", "RANGE"),
            ("slices: [{sources: [{model: ./a, layer_range: [0, ▶2.5]}]}]", "'2.5' is not a layer", "RANGE[1]"),
            ("slices: [{sources: [{model: ./a, layer_range: [▶-1, 2]}]}]", "'-1' is not a layer", "RANGE[0]"),
            ("slices: [{sources: [{model: ./a, layer_range: [0, ▶true]}]}]", "'true' is not a layer", "RANGE[1]"),
            ("slices: [{sources: [{model: ./a, layer_range: [0, ▶[1]]}]}]", "a list is not a layer", "RANGE[1]"),
            ("slices: [{sources: [▶{model: ./a}]}]", "'layer_range' is missing", "slices[0].sources[0]"),
            ("slices: [{sources: [▶{layer_range: [0, 1]}]}]", "'model' is missing", "slices[0].sources[0]"),
            ("slices: [{sources: [▶./a]}]", "expected a mapping, found a text", "slices[0].sources[0]"),
            ("slices: [{sources: ▶[]}]", "'sources' is empty", "slices[0].sources"),
            ("slices: [▶{parameters: {}}]", "'sources' is missing", "slices[0]"),
            ("slices: [▶1]", "expected a mapping, found a number", "slices[0]"),
            ("slices: ▶{a: 1}", "expected a list, found a mapping", "slices"),
            (
                "slices: [{sources: [{model: ./a, layer_range: [0, 2]}, {model: ./b, layer_range: ▶[0, 1]}]}]",
                "1 layer, but the first source gives 2 layers",
                "slices[0].sources[1].layer_range",
            ),
            (
                "models: [{model: ./a}]\n▶slices: [{sources: [{model: ./a, layer_range: [0, 2]}]}]",
                "'models' and 'slices' exclude each other",
                "slices",
            ),
        ],
    )
    def test_mistake(self, body: str, message: str, path: str, form: str) -> None:
        """A mistake in a slice is one error, at its place and under its path, in both forms."""
        text, expected = marked(as_form(f"merge_method: l\n{body}", form))
        recipe = read(text)
        assert [message in problem.message for problem in recipe.problems] == [True], recipe.problems
        prefix = "steps.only." if form == "native" else ""
        assert recipe.problems[0].path == prefix + path.replace("RANGE", "slices[0].sources[0].layer_range")
        assert places(recipe) == expected


class TestModules:
    def test_what_they_say(self, form: str) -> None:
        """Each module is made of models or of slices, with parameters of its own."""
        recipe = read(as_form(MODULES, form))
        assert recipe.problems == ()
        (step,) = recipe.steps
        vision, text = step.modules
        assert (vision.name, [str(entry.source) for entry in vision.inputs], vision.slices) == ("vision", ["./a"], ())
        assert (text.name, text.inputs, len(text.slices), list(text.parameters)) == ("text", (), 1, ["weight"])
        assert text.slices[0].base == ModelReference("./c")
        assert [(str(source), path) for source, path in named_sources(step)] == [
            ("./a", "modules.vision.models[0].model"),
            ("./a", "modules.text.slices[0].sources[0].model"),
            ("./b", "modules.text.slices[0].sources[1].model"),
            ("./c", "modules.text.slices[0].base_model"),
        ]
        assert [str(source) for source in step.sources()] == ["./a", "./b", "./c"]

    @pytest.mark.parametrize(
        ("body", "message", "path"),
        [
            ("modules: {text: ▶{parameters: {weight: 1}}}", "'models' is missing", "modules.text"),
            ("modules: {text: {models: ▶[]}}", "'models' is empty", "modules.text.models"),
            (
                "modules: {text: {models: [{model: ./a}], ▶slices: [{sources: [{model: ./a, layer_range: [0, 1]}]}]}}",
                "exclude each other",
                "modules.text.slices",
            ),
            ("modules: {text: {models: [{model: ▶a@b@c}]}}", "more than one '@'", "modules.text.models[0].model"),
            ("modules: {text: ▶1}", "expected a mapping", "modules.text"),
            ("modules: ▶[1]", "expected a mapping", "modules"),
        ],
    )
    def test_mistake(self, body: str, message: str, path: str) -> None:
        """A mistake in a module is one error, at its place and under its path."""
        text, expected = marked(f"merge_method: l\n{body}")
        recipe = read(text)
        assert [message in problem.message for problem in recipe.problems] == [True], recipe.problems
        assert (recipe.problems[0].path, places(recipe)) == (path, expected)


class TestAdapters:
    @pytest.mark.parametrize(
        ("text", "canonical"),
        [
            ("org/a@v1+org/b@v2", "org/a@v1+org/b@v2"),
            ("{model: org/a@v1, lora: org/b}", "org/a@v1+org/b"),
            ("{model: {path: org/a}, lora: {path: org/b, revision: v2}}", "org/a+org/b@v2"),
            ("{path: ./a, adapters: [./b, {path: ./c, revision: v1, weight: 0.5}]}", "./a+./b+0.5*./c@v1"),
        ],
    )
    def test_forms(self, text: str, canonical: str) -> None:
        """An adapter stands behind a `+` or under `lora`; several, with weights, in a list."""
        recipe = read(f"merge_method: l\nmodels: [{{model: {text}}}]")
        assert recipe.problems == ()
        assert str(recipe.steps[0].inputs[0].source) == canonical

    def test_override_architecture_is_not_needed(self) -> None:
        """Names decide what a model is made of: the field is a warning."""
        recipe = read("merge_method: l\nmodels: [{model: {model: a, override_architecture: X}}]")
        assert ["not needed" in message for message in messages(recipe, "warning")] == [True]
        assert recipe.steps[0].inputs[0].source == ModelReference("a")

    def test_names_and_adapters(self) -> None:
        """A name of `models` may have an adapter, and the adapter may be a name too."""
        names = "models: {chat: {path: org/chat, revision: v1}, lora: ./lora, both: ./a+./b}\n"
        text = step_with(
            "merge_method: l\nmodels: [{model: chat+lora}, {model: {model: chat, lora: ./x}}, {model: both}]"
        )
        recipe = read(names + text)
        assert recipe.problems == ()
        assert [str(entry.source) for entry in recipe.steps[0].inputs] == [
            "org/chat@v1+./lora",
            "org/chat@v1+./x",
            "./a+./b",
        ]

    def test_an_adapter_alone_is_a_delta(self) -> None:
        """`task_vector: {adapter: a}` reads the adapter; with a base, it is the difference of the base with it."""
        text = "mergeflow: 1\nsteps:\n  x: {task_vector: {adapter: org/a@v1}}\n"
        text += "  y: {task_vector: {adapter: {path: ./a, weight: 2}, base: ./b}}\n"
        recipe = read(text)
        assert recipe.problems == ()
        (alone,), (weighted,) = (step.inputs for step in recipe.steps)
        assert alone.source == ModelReference("", adapters=(AdapterReference("org/a", "v1"),))
        assert weighted.source == ModelReference("./b", adapters=(AdapterReference("./a", weight=2.0),))
        assert [step.base for step in recipe.steps] == [None, ModelReference("./b")]

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ("task_vector: {adapter: ./a, ▶model: ./b}", "'model' and 'adapter' exclude each other"),
            ("task_vector: {adapter: ▶[x]}", "expected a text, found a list"),
            ("task_vector: {adapter: {path: ./a, weight: ▶much}}", "'much' is not a weight"),
            ("task_vector: {adapter: {path: ./a, weight: ▶.nan}}", "'.nan' is not a weight"),
            ("task_vector: {adapter: ▶{revision: x}}", "an adapter needs a 'path'"),
            ("merge_method: l\nmodels: [{model: ▶./a+./b+./c}]", "several adapters are written"),
            ("merge_method: l\nmodels: [{model: {path: ▶''}}]", "this one is empty"),
        ],
    )
    def test_mistake(self, body: str, message: str) -> None:
        """A mistake in an adapter is one error at its place."""
        other = "  other: {merge_method: l, models: [{model: ./a}]}\noutputs: {only: , other: }\n"
        text, expected = marked(step_with(body) + "\n" + other)
        recipe = read(text)
        assert [message in problem.message for problem in recipe.problems] == [True], recipe.problems
        assert places(recipe) == expected
