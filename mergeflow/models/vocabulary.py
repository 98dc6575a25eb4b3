"""Which tensors of a model have one row for each token, told by their names and shapes: no table of architectures.

A tensor is a vocabulary tensor when both hold:

1. its name says so. Of its parts (between dots, the last, ``weight`` or ``bias``, left out) the last one is a word for
   an embedding of tokens or for the head that scores them:

       model.embed_tokens.weight          transformer.wte.weight          shared.weight
       embeddings.word_embeddings.weight  gpt_neox.embed_in.weight        backbone.embeddings.weight
       lm_head.weight                     lm_head.bias                    embed_out.weight
       cls.predictions.decoder.weight     cls.predictions.bias            output.weight

   Positions, token types and patches are other words (``wpe``, ``position_embeddings``, ``embed_positions``), so they
   are never taken, whatever their size. Nor is anything inside a layer.

2. it has as many rows as the vocabulary. These are the rows of an embedding whose number config.json states as a
   ``vocab_size`` (its own, or of a nested configuration); when none has that many, those of the first embedding in the
   order of the names. A model whose parts have several embeddings of other sizes (a codec's) keeps those as they are.

Rows are the first axis; a bias of shape (1, V), as BART has it, counts as one of V rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from mergeflow.models.config_vocabulary import stated_sizes
from mergeflow.models.layout import infer_layout

Shape = tuple[int, ...]

_EMBEDDINGS = (
    "embed_tokens",
    "tok_embeddings",
    "token_embedding",
    "token_embeddings",
    "embed_in",
    "wte",
    "word_embeddings",
    "word_embedding",
    "shared",
    "embedding",
    "embeddings",
    "emb",
    "token_embd",
    "embed",
    "tokens_embed",
)
_HEADS = (
    "lm_head",
    "embed_out",
    "output",
    "vocab_projector",
    "proj_out",
    "generator_lm_head",
    "head",
    "final_logits_bias",
    "output_layer",
    "output_projection",
)
_EMBEDDING = re.compile(rf"(?:.*\.)?(?:{'|'.join(_EMBEDDINGS)})(?:\.weight)?")
_HEAD = re.compile(
    rf"(?:.*\.)?(?:{'|'.join(_HEADS)})(?:\.(?:weight|bias))?"
    r"|(?:.*\.)?(?:predictions|lm_head)\.(?:decoder\.(?:weight|bias)|bias)"
)


def vocabulary_tensors(shapes: Mapping[str, Shape], config: Mapping[str, object]) -> tuple[str, ...]:
    """The names of the vocabulary tensors of a model, in the order of `shapes`.

    Args:
        shapes: of every tensor of the model, by name.
        config: its config.json.
    """
    rows = vocabulary_rows(shapes, config)
    if rows is None:
        return ()
    return tuple(name for name in _candidates(shapes, (_EMBEDDING, _HEAD)) if rows_of(shapes[name]) == rows)


def vocabulary_rows(shapes: Mapping[str, Shape], config: Mapping[str, object]) -> int | None:
    """How many tokens a model has rows for; None when it has no embedding of tokens."""
    found = [rows_of(shapes[name]) for name in _candidates(shapes, (_EMBEDDING,)) if len(shapes[name]) == 2]
    stated = {size for _, size in stated_sizes(config)}
    return next((rows for rows in found if rows in stated), found[0] if found else None)


def is_embedding(name: str) -> bool:
    """Whether a tensor is an embedding of tokens, by its name."""
    return name.endswith(".weight") and _EMBEDDING.fullmatch(name) is not None


def is_head(name: str) -> bool:
    """Whether a tensor is the matrix of a head that scores tokens, by its name."""
    return name.endswith(".weight") and _HEAD.fullmatch(name) is not None


def rows_of(shape: Shape) -> int:
    """How many rows a vocabulary tensor of this shape has."""
    return shape[1] if len(shape) == 2 and shape[0] == 1 else shape[0]


def _candidates(shapes: Mapping[str, Shape], patterns: tuple[re.Pattern[str], ...]) -> Iterator[str]:
    """Tensors that are vocabulary tensors by their names."""
    named = [name for name in shapes if shapes[name] and any(pattern.fullmatch(name) for pattern in patterns)]
    layout = infer_layout(shapes) if named else None
    yield from (name for name in named if layout is not None and layout.place(name).layer is None)


def vocabulary_hint(name: str, shape: Sequence[int], other: Sequence[int]) -> str:
    """What to add to a message about two shapes of one tensor: the way out when their vocabularies differ."""
    is_named = any(pattern.fullmatch(name) for pattern in (_EMBEDDING, _HEAD))
    if not is_named or len(shape) != len(other) or list(shape[1:]) != list(other[1:]):
        return ""
    return "; their vocabularies differ: 'tokenizer: {source: union}' (or base, or a model) merges them token by token"
