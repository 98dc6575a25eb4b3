"""`tokenizer`, `tokenizer_source` and `chat_template`: what they say, and what is wrong with them."""

from __future__ import annotations

import textwrap

import pytest
from recipe_texts import TOKENS, marked, messages, places, read, step_with

from mergeflow.recipe.cycles import reads
from mergeflow.recipe.places import named_sources
from mergeflow.recipe.records import ModelReference, ModelToken, StepReference, TokenRow, Vocabulary

MERGE = "merge_method: linear\nmodels: [{model: ./a}]\n"


def vocabulary(text: str) -> Vocabulary | None:
    recipe = read(MERGE + text)
    assert recipe.problems == ()
    return recipe.steps[0].vocabulary


class TestVocabularies:
    def test_rows_of_every_kind(self) -> None:
        """A token's row is a model's, zeros, another token's row by text or number, or as for any other."""
        found = vocabulary(TOKENS)
        assert found is not None
        assert (found.source, found.pad_to_multiple_of) == ("union", 16)
        rows = {token: (row.source, row.force) for token, row in found.tokens.items()}
        assert rows == {
            "<|im_start|>": (ModelReference("./a"), False),
            "<|tool|>": ("zero", True),
            "<|new|>": (ModelToken(ModelReference("./b"), "<|im_end|>"), False),
            "5": (ModelToken(ModelReference("./b"), token_id=7), False),
            "<|any|>": (None, False),
        }

    @pytest.mark.parametrize(
        ("text", "source"),
        [
            ("tokenizer: {}", "union"),
            ("tokenizer: {source: base}", "base"),
            ("tokenizer: {source: ./base}", ModelReference("./base")),
            ("tokenizer_source: union", "union"),
            ("tokenizer_source: org/x@v1", ModelReference("org/x", "v1")),
            ("tokenizer: {pad_to_multiple_of: 0}", "union"),
        ],
    )
    def test_sources(self, text: str, source: object) -> None:
        """`union` and `base` are words before they are models; an empty mapping is a union."""
        found = vocabulary(text)
        assert found is not None
        assert found.source == source
        assert found.pad_to_multiple_of is None

    def test_none(self) -> None:
        """Without a word of it, rows are merged by their numbers."""
        assert vocabulary("tokenizer:\n") is None

    def test_its_models_are_read_too(self) -> None:
        """Steps and models that only the vocabulary names are needed, and have a path."""
        body = MERGE + "tokenizer: {source: other, tokens: {x: {source: {kind: model_token, model: ./b, token: y}}}}\n"
        recipe = read(step_with(body) + "  other: {merge_method: l, models: [{model: ./c}]}\n")
        assert recipe.problems == ()
        step = recipe.step("only")
        assert reads(step) == ("other",)
        assert step.sources() == (ModelReference("./a"),)
        assert [(source, path) for source, path in named_sources(step)][1:] == [
            (StepReference("other"), "tokenizer.source"),
            (ModelReference("./b"), "tokenizer.tokens.x.source.model"),
        ]
        assert [output.step for output in recipe.outputs] == ["only"]

    def test_a_name_of_the_recipe_comes_before_the_words(self) -> None:
        """In a native recipe, `base` is the model of that name where there is one."""
        recipe = read("models: {base: ./m}\n" + step_with(MERGE + "tokenizer: {source: base}\n"))
        found = recipe.steps[0].vocabulary
        assert found is not None
        assert found.source == ModelReference("./m")

    def test_a_row_knows_its_place(self) -> None:
        """Later checks can say where a token is configured."""
        found = vocabulary("tokenizer: {tokens: {x: {source: ./a}}}")
        assert found is not None
        assert found.tokens["x"].position is not None
        assert found.tokens["x"].position.column == 22
        assert isinstance(found.tokens["x"], TokenRow)

    @pytest.mark.parametrize(
        ("body", "message", "path"),
        [
            ("tokenizer: ▶union", "write {source: union}", "tokenizer"),
            ("tokenizer: ▶[union]", "expected a mapping, found a list", "tokenizer"),
            ("tokenizer: {source: ▶[x]}", "expected a text", "tokenizer.source"),
            ("tokenizer: {source: base}\n▶tokenizer_source: union", "exclude each other", "tokenizer_source"),
            ("tokenizer: {pad_to_multiple_of: ▶2.5}", "'2.5' is not what rows", "tokenizer.pad_to_multiple_of"),
            ("tokenizer: {pad_to_multiple_of: ▶-8}", "'-8' is not what rows", "tokenizer.pad_to_multiple_of"),
            ("tokenizer: {tokens: ▶[x]}", "expected a mapping", "tokenizer.tokens"),
            ("tokenizer: {tokens: {x: ▶./a}}", "write {source: ./a}", "tokenizer.tokens.x"),
            ("tokenizer: {tokens: {x: {source: ▶a@b@c}}}", "more than one '@'", "tokenizer.tokens.x.source"),
            ("tokenizer: {tokens: {x: {force: ▶maybe}}}", "'maybe' is not true or false", "tokenizer.tokens.x.force"),
            (
                "tokenizer: {tokens: {x: {source: {kind: ▶zeros}}}}",
                "did you mean 'zero'?",
                "tokenizer.tokens.x.source.kind",
            ),
            (
                "tokenizer: {tokens: {x: {source: ▶{kind: model_token, model: ./a}}}}",
                "a 'token' or a 'token_id': neither is",
                "tokenizer.tokens.x.source",
            ),
            (
                "tokenizer: {tokens: {x: {source: ▶{kind: model_token, model: ./a, token: x, token_id: 1}}}}",
                "a 'token' or a 'token_id': both are given",
                "tokenizer.tokens.x.source",
            ),
            (
                "tokenizer: {tokens: {x: {source: ▶{kind: model_token, token: x}}}}",
                "'model' is missing",
                "tokenizer.tokens.x.source",
            ),
            (
                "tokenizer: {tokens: {x: {source: ▶{model: ./a, token: x}}}}",
                "'kind: model_token' is missing",
                "tokenizer.tokens.x.source",
            ),
            (
                "tokenizer: {tokens: {x: {source: {kind: model_token, model: ./a, token_id: ▶-1}}}}",
                "'-1' is not a token's number",
                "tokenizer.tokens.x.source.token_id",
            ),
            ("chat_template: ▶chatm", "did you mean 'chatml'?", "chat_template"),
            ("chat_template: ▶'short {'", "the names are auto, alpaca", "chat_template"),
            ("chat_template: ▶[x]", "expected a text", "chat_template"),
        ],
    )
    def test_mistake(self, body: str, message: str, path: str) -> None:
        """A mistake is one error, at its place and under its path, in both forms."""
        for prefix, text in (("", MERGE + body), ("steps.only.", step_with(MERGE + body))):
            plain, expected = marked(text)
            recipe = read(plain)
            assert [message in problem.message for problem in recipe.problems] == [True], recipe.problems
            assert recipe.problems[0].path == prefix + path
            assert places(recipe) == expected


@pytest.mark.parametrize(
    "name", ["auto", "chatml", "llama3", "mistral", "alpaca", "exaone", "{{ messages }} of any kind"]
)
def test_chat_templates(name: str) -> None:
    """A template is a name, `auto`, or its own text."""
    recipe = read(textwrap.dedent(MERGE) + f'chat_template: "{name}"\n')
    assert messages(recipe) == []
    assert recipe.steps[0].chat_template == name
