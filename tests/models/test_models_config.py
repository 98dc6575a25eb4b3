"""config.json as it is: nested configurations by their words, the vocabulary's size, head and embedding."""

from __future__ import annotations

import pytest

from mergeflow.models.config_parts import paths_for, words
from mergeflow.models.config_vocabulary import says_untied, vocab_size, with_head_of_its_own, with_vocab_size


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("visual.blocks", [("vision_config",)]),
        ("vision_tower.encoder.layers", [("vision_config",)]),
        ("audio_tower.layers", []),
        ("language_model.model.layers", [("text_config",)]),
        ("model.layers", [("text_config",)]),
        ("model.encoder.layers", [("text_config",)]),
    ],
)
def test_words_lead_from_a_name_to_its_configuration(name: str, expected: list[tuple[str, ...]]) -> None:
    """By the words they share; a part without a configuration of its own has none."""
    config = {"text_config": {"n": 1}, "vision_config": {"n": 1}, "audio_config": {}}
    assert paths_for(name, config, lambda _, part: "n" in part) == expected


def test_a_vision_model_alone_needs_no_vision_config() -> None:
    """ViT's layers are described by the outermost configuration."""
    assert paths_for("vit.encoder.layer", {"n": 1}, lambda _, part: "n" in part) == [()]
    assert words("vit.encoder.layer") == {"vision", "encoder"}


def test_the_vocabularys_size_is_set_where_it_is_stated() -> None:
    """In the outermost configuration and in the language model's; a codec's own vocabulary stays."""
    config = {"vocab_size": 9, "text_config": {"vocab_size": 9}, "audio_config": {"vocab_size": 9}, "hidden_size": 9}
    assert with_vocab_size(config, 12) == {
        "vocab_size": 12,
        "text_config": {"vocab_size": 12},
        "audio_config": {"vocab_size": 9},
        "hidden_size": 9,
    }
    assert with_vocab_size({"text_config": {"vocab_size": 9}}, 12) == {"text_config": {"vocab_size": 12}}
    assert with_vocab_size({"model_type": "x"}, 12) == {"model_type": "x", "vocab_size": 12}
    assert vocab_size({"vision_config": {"vocab_size": 3}}) is None


def test_a_head_of_its_own_unties_the_configuration() -> None:
    """Where it says tied, it says no; where it says nothing and the model was tied, it says so too."""
    tied = {"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": True, "a": 1}}
    untied = {"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": False, "a": 1}}
    assert with_head_of_its_own(tied, is_tied_by_default=True) == untied
    assert with_head_of_its_own({}, is_tied_by_default=True) == {"tie_word_embeddings": False}
    assert with_head_of_its_own({}, is_tied_by_default=False) == {}
    silent = {"text_config": {"a": 1}, "vision_config": {"a": 1}}
    stated = {"text_config": {"a": 1, "tie_word_embeddings": False}, "tie_word_embeddings": False}
    assert with_head_of_its_own(silent, is_tied_by_default=True) == {**silent, **stated}


def test_an_untied_head_is_said_by_the_outermost_word_there_is() -> None:
    """The language model's own word counts where the outermost configuration has none (or null)."""
    assert says_untied({"text_config": {"tie_word_embeddings": False}})
    assert says_untied({"tie_word_embeddings": None, "text_config": {"tie_word_embeddings": False}})
    assert not says_untied({"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": False}})
    assert not says_untied({"vision_config": {"tie_word_embeddings": False}})
