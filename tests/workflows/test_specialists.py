"""The demo's tasks and encoder: nothing held out is learnt, padding changes nothing, training moves labels apart."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from transformers import BertConfig, BertModel

from specialists.encoder import Encoder, Schedule, accuracy, train
from specialists.tasks import (
    LANGUAGES,
    LIBRARIES,
    STEM_LETTERS,
    Example,
    Task,
    docs_task,
    first_sentence,
    languages_task,
    split,
    without_accents,
)


class LetterTokenizer:
    """A stand-in for a tokenizer: one token for each letter."""

    def __call__(self, texts: list[str], *, truncation: bool, max_length: int) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(letter) - 96 for letter in text][:max_length] for text in texts]}


@pytest.fixture
def encoder() -> Encoder:
    """A tiny encoder with random weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return Encoder(BertModel(BertConfig(vocab_size=32, **sizes)).eval(), LetterTokenizer())


def examples(texts: Sequence[str], label: int) -> tuple[Example, ...]:
    return tuple(Example(text, label) for text in texts)


def test_docs_has_enough_of_every_library_and_shares_no_sentence_between_its_parts() -> None:
    """Each answer can be learnt, and none of what is held out was seen."""
    task = docs_task()
    for part, least in ((task.train, 40), (task.held_out, 8)):
        counts = [sum(example.label == label for example in part) for label in range(len(LIBRARIES))]
        assert min(counts) >= least
    assert not {example.text for example in task.train} & {example.text for example in task.held_out}


def test_languages_holds_words_out_with_all_their_inflections() -> None:
    """No held-out word begins as a word of the training part does."""
    pytest.importorskip("stopwordsiso", reason="a data package that only `make demo` installs")
    task = languages_task()
    stems = {example.text[:STEM_LETTERS] for example in task.train}
    assert not stems & {example.text[:STEM_LETTERS] for example in task.held_out}
    assert {example.label for example in task.held_out} == set(range(len(LANGUAGES)))


def test_what_is_held_out_does_not_depend_on_order() -> None:
    """The parts are chosen by checksum: the same ones whichever way the examples come."""
    texts = [f"word{number}" for number in range(200)]
    one = split("t", "?", ("a",), examples(texts, 0), key=str)
    other = split("t", "?", ("a",), examples(texts[::-1], 0), key=str)
    assert set(one.held_out) == set(other.held_out)
    assert 20 < len(one.held_out) < 60


def test_a_first_sentence_ends_at_its_full_stop_and_stands_on_one_line() -> None:
    """Line breaks inside it go; what follows it goes too."""
    assert first_sentence("Open a\n    file.  Then more.\n\nDetails.") == "Open a file."


def test_accents_do_not_give_a_language_away() -> None:
    """Letters are what the tokenizer makes of them."""
    assert without_accents("déjà") == "deja"


def test_an_embedding_does_not_depend_on_what_it_is_padded_with(encoder: Encoder) -> None:
    """A short text beside a long one has the embedding it has alone."""
    alone = encoder.embed_all(["abc"])
    beside = encoder.embed(encoder.tokens(["abc", "abcdefghijkl"]))[:1]
    torch.testing.assert_close(alone, beside.detach(), rtol=1e-5, atol=1e-6)


def test_training_tells_apart_what_it_was_shown(encoder: Encoder) -> None:
    """Words of a to f against words of u to z, mixed with letters of both: learnt, and true of held-out words too."""
    words = [[f"{a}{m}{b}" for a in letters for b in letters for m in "mno"] for letters in ("abcdef", "uvwxyz")]
    every = [example for label, texts in enumerate(words) for example in examples(texts, label)]
    task = split("letters", "?", ("early", "late"), every, key=str)
    before = encoder.model.embeddings.word_embeddings.weight.clone()
    train(encoder, task, Schedule(steps=60, batch=16, learning_rate=3e-3))
    assert accuracy(encoder, task) > 0.95
    assert torch.equal(encoder.model.embeddings.word_embeddings.weight, before)


def test_training_twice_gives_the_same_weights() -> None:
    """Everything random is drawn from the schedule's seed."""
    task = Task("t", "?", ("a", "b"), (*examples(["abc", "abd"] * 4, 0), *examples(["xyz", "xzz"] * 4, 1)), ())

    def trained() -> torch.Tensor:
        torch.manual_seed(0)
        model = BertModel(
            BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
        )
        encoder = Encoder(model, LetterTokenizer())
        train(encoder, task, Schedule(steps=5, batch=4, learning_rate=1e-3, warm_up=1))
        return encoder.model.encoder.layer[0].attention.self.query.weight.detach()

    assert torch.equal(trained(), trained())
