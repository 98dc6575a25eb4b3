"""What config.json says of the vocabulary: how many rows the embedding has, and whether the head is the same matrix."""

from __future__ import annotations

from collections.abc import Iterator

from mergeflow.models.config_parts import Config, Path, is_of_language_model, nested_configs, with_every_part, words

_SIZE = "vocab_size"
_TIED = "tie_word_embeddings"


def vocab_size(config: Config) -> int | None:
    """How many rows the embedding has by the configuration, the outermost or the language model's; None: not said."""
    sizes = (size for path, size in stated_sizes(config) if is_of_language_model(path))
    return next(sizes, None)


def stated_sizes(config: Config) -> Iterator[tuple[Path, int]]:
    """Every size of a vocabulary that a configuration states, of any part, the outer ones first."""
    for path, part in nested_configs(config):
        size = part.get(_SIZE)
        if isinstance(size, int) and not isinstance(size, bool):
            yield path, size


def with_vocab_size(config: Config, rows: int) -> dict[str, object]:
    """The configuration of a model whose embedding has `rows` rows.

    Every place that states the size of the language model's vocabulary follows, as nested configurations repeat it;
    the vocabulary of another part (a codec's) stays. A configuration that states none gets ``vocab_size``.
    """
    earlier = vocab_size(config)
    if earlier is None:
        return {**config, _SIZE: rows}

    def change(path: Path, part: Config) -> Config:
        return {**part, _SIZE: rows} if is_of_language_model(path) and part.get(_SIZE) == earlier else part

    return with_every_part(config, change)


def says_untied(config: Config) -> bool:
    """Whether a configuration says that the head is a matrix of its own."""
    stated = (part.get(_TIED) for path, part in nested_configs(config) if is_of_language_model(path))
    return next((word for word in stated if word is not None), None) is False


def with_head_of_its_own(config: Config, *, is_tied_by_default: bool) -> dict[str, object]:
    """The configuration of a model whose head is another matrix than its embedding.

    Where the configuration says that they are one, it says no afterwards: a loader would throw the head away.

    Args:
        is_tied_by_default: the configuration's own model has no head, so what it does not say means yes.
    """

    def change(path: Path, part: Config) -> Config:
        is_silent = _TIED not in part and (not path or words(path[-1]) == {"text"})
        is_tied = part.get(_TIED) is True or (is_silent and is_tied_by_default)
        return {**part, _TIED: False} if is_tied and is_of_language_model(path) else part

    return with_every_part(config, change)
