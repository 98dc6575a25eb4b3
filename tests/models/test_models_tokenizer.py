"""A model's tokenizer: read from its files, believed only when checked, cut and added to."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trained_tokenizers import ENGLISH, KINDS, document, train

from mergeflow.errors import CheckpointError
from mergeflow.models.tokenizer import AddedToken, Tokenizer, parse_tokenizer, read_tokenizer
from mergeflow.models.tokenizer_building import library_fault, roles, stripped, with_tokens, with_whole_tokens

WORDS = {
    "version": "1.0",
    "added_tokens": [],
    "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"},
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def parsed(tokens: Mapping[str, object], settings: Mapping[str, object] | None = None) -> Tokenizer:
    return parse_tokenizer(tokens, settings or {}, None, "m")


def trained(kind: str, size: int = 90) -> Tokenizer:
    return parsed(document(train(kind, ENGLISH, size, added=["<|im_end|>"])))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_as_its_library_reads_it(kind: str) -> None:
    """Tokens and ids are those the library `tokenizers` states, added tokens included."""
    tokenizer = train(kind, ENGLISH, added=["<|im_end|>"])
    found = parsed(document(tokenizer))
    assert dict(found.ids) == tokenizer.get_vocab(with_added_tokens=True)
    assert found.rows == max(tokenizer.get_vocab().values()) + 1
    assert found.added["<|im_end|>"] == AddedToken("<|im_end|>", special=True, normalized=False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stripped_tokenizer_still_loads(kind: str) -> None:
    """Without its last tokens it has exactly the ids below the cut, and the library takes it."""
    whole = trained(kind)
    cut = stripped(whole, whole.rows - 5)
    assert cut.ids == {token: number for token, number in whole.ids.items() if number < whole.rows - 5}
    assert library_fault(cut) is None
    assert parsed(cut.document).ids == cut.ids
    assert stripped(whole, whole.rows) is whole


@pytest.mark.parametrize("kind", KINDS)
def test_added_tokens_come_behind_the_last_id(kind: str) -> None:
    """New tokens get the next ids in their order; those that are there stay as they are; the library agrees."""
    whole = trained(kind)
    made = with_tokens(whole, [AddedToken("<|new|>", special=True), AddedToken("<s>"), AddedToken("word")])
    assert {token: made.ids[token] for token in made.ids.keys() - whole.ids.keys()} == {
        "<|new|>": whole.rows,
        "word": whole.rows + 1,
    }
    assert library_fault(made) is None
    assert parsed(made.document).ids == made.ids


def test_an_ordinary_token_becomes_an_added_one_under_its_id() -> None:
    """Another model's added token is found whole in a text; an id that an added token has already is left alone."""
    renamed = {"id": 1, "content": "<|im_end|>", "special": True}
    whole = parsed({**WORDS, "added_tokens": [renamed]}, {"extra_special_tokens": []})
    wanted = [AddedToken("a", special=True), AddedToken("b"), AddedToken("<|im_end|>"), AddedToken("new")]
    made = with_whole_tokens(whole, wanted)
    assert made.ids == whole.ids
    assert made.added.keys() == {"a", "<|im_end|>"}
    assert made.settings == {"extra_special_tokens": ["a"]}
    assert parsed(made.document).added == made.added


def test_what_is_cut_away_is_cut_from_the_settings_too() -> None:
    """A role or a list that names a token without a row would bring the token back on loading."""
    settings = {
        "pad_token": {"content": "b"},
        "eos_token": "a",
        "extra_special_tokens": ["a", "b"],
        "added_tokens_decoder": {"0": {"content": "a"}, "1": {"content": "b"}},
    }
    cut = stripped(parsed(WORDS, settings), 1)
    assert cut.settings == {
        "eos_token": "a",
        "extra_special_tokens": ["a"],
        "added_tokens_decoder": {"0": {"content": "a"}},
    }
    assert roles(cut.settings) == {"eos_token": "a"}


def test_templates_are_found_wherever_they_are_kept() -> None:
    """A file beside the settings comes first; several templates have names, of which one is the default."""
    assert parse_tokenizer(WORDS, {"chat_template": "old"}, "new", "m").chat_template == "new"
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}, 3]
    found = parsed(WORDS, {"chat_template": named})
    assert (found.chat_template, found.templates) == ("d", {"tool_use": "t"})
    assert "chat_template" not in found.settings


def added(*tokens: tuple[object, object]) -> dict[str, object]:
    return {**WORDS, "added_tokens": [{"content": content, "id": number} for content, number in tokens]}


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ({}, "its model is none of"),
        ({"model": {"type": "WordLevel", "vocab": []}}, "not a mapping of tokens"),
        ({"model": {"type": "WordLevel", "vocab": {}}}, "not one token"),
        ({"model": {"type": "WordLevel", "vocab": {"a": -1}}}, "has no id between"),
        ({"model": {"type": "WordLevel", "vocab": {"a": True}}}, "has no id between"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 10**30}}}, "has no id between"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 0}}}, "have the same id, 0"),
        ({"model": {"type": "Unigram", "vocab": {"a": 0}}}, "not a list of tokens and scores"),
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0], ["b"]]}}, "entry 1 of its vocabulary"),
        ({"model": {"type": "Future", "vocab": {"a": 0}}}, "its model is none of"),
        ({**WORDS, "added_tokens": "x"}, "added_tokens are not a list"),
        ({**WORDS, "added_tokens": [1]}, "not an object"),
        (added(("x", 2), ("y", 2)), "have the same id, 2"),
        (added(("x", 2), ("x", 3)), "is listed twice"),
        (added(("a", 5)), "has two ids, 0 and 5"),
        (added((None, 5)), "a token is not a text"),
        ({**WORDS, "added_tokens": [{"content": "x", "id": 2, "special": "yes"}]}, "not true or false"),
    ],
)
def test_a_damaged_tokenizer_is_one_clear_error(tokens: dict[str, object], message: str) -> None:
    """Ids that are no ids, tokens with one id, special tokens that collide: each is said, with the model's name."""
    with pytest.raises(CheckpointError, match="^m: tokenizer.json: ") as error:
        parsed(tokens)
    assert message in str(error.value)


def test_a_renamed_token_shares_its_row() -> None:
    """Fine-tunes rename a token by an added one of the same id: both name that row."""
    assert parsed(added(("<|im_end|>", 1))).ids == {"a": 0, "b": 1, "<|im_end|>": 1}


def test_a_tokenizer_in_another_form_is_refused_with_the_way_out() -> None:
    """Without tokenizer.json there is no vocabulary, but a hint; a model without any tokenizer has none."""
    with pytest.raises(CheckpointError, match=r"only there as tokenizer\.model: convert it to tokenizer\.json"):
        read_tokenizer(["tokenizer.model"], lambda name: b"", "m")
    assert read_tokenizer(["config.json"], lambda name: b"", "m") is None


@settings(max_examples=150, deadline=None)
@given(
    tokens=st.dictionaries(st.sampled_from(["model", "added_tokens", "version"]), JSON),
    stated=JSON,
    cut=st.integers(0, 3),
)
def test_nothing_but_our_own_errors_comes_out(tokens: dict[str, object], stated: object, cut: int) -> None:
    """Whatever JSON stands in the files, it is a tokenizer or a CheckpointError; a tokenizer can be cut and added to."""
    for model in (tokens.get("model"), {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": stated}):
        files = {
            "tokenizer.json": json.dumps({**tokens, "model": model}).encode(),
            "tokenizer_config.json": json.dumps({"chat_template": stated, "pad_token": stated}).encode(),
        }
        try:
            tokenizer = read_tokenizer(list(files), files.__getitem__, "m")
        except CheckpointError:
            continue
        assert tokenizer is not None
        made = with_tokens(stripped(tokenizer, cut), [AddedToken("new")])
        assert "new" in made.ids
        library_fault(made)


@settings(max_examples=100, deadline=None)
@given(text=st.binary(max_size=40))
def test_bytes_that_are_no_json_are_refused(text: bytes) -> None:
    """Damaged bytes are a CheckpointError."""
    with pytest.raises(CheckpointError):
        read_tokenizer(["tokenizer.json"], lambda name: text, "m")
