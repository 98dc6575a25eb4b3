"""Small tokenizers of every kind, trained in the test: byte-level BPE, sentencepiece-style BPE and Unigram, WordPiece."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

KINDS = ("byte_bpe", "sentencepiece_bpe", "unigram", "wordpiece")
ENGLISH = ("the merger of many models makes one model", "that knows what all of the others knew", "before the merge")
GERMAN = ("das Modell kennt alle Wörter der anderen Modelle", "und vergisst keines davon über Nacht wieder")


def train(kind: str, words: Sequence[str], size: int = 90, added: Sequence[str] = ()) -> Tokenizer:
    """A tokenizer of `kind` that knows some of these words; `added` are special tokens behind its vocabulary."""
    special = ["<unk>", "<s>", "</s>"]
    if kind == "byte_bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer: trainers.Trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    elif kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    else:
        is_bpe = kind == "sentencepiece_bpe"
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>") if is_bpe else models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        if is_bpe:
            trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False)
        else:
            trainer = trainers.UnigramTrainer(
                vocab_size=size, special_tokens=special, unk_token="<unk>", show_progress=False
            )
    tokenizer.train_from_iterator([" ".join(words)] * 4, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in added])
    return tokenizer


def document(tokenizer: Tokenizer) -> dict[str, object]:
    """Its tokenizer.json, parsed."""
    parsed: dict[str, object] = json.loads(tokenizer.to_str())
    return parsed
