"""A configuration is one model's or nests one for each part of it; here, which nested one a name belongs to.

Parts are told by words that names of tensors and keys of config.json have in common, whoever made the model:

    visual.blocks, vision_tower.encoder.layers, vit...   vision_config
    audio_tower.layers                                   audio_config
    language_model.model.layers, model.layers            text_config, llm_config, or the configuration itself
    decoder.layers of an encoder-decoder of two configs  decoder

A name without such a word is of the language model, and the outermost configuration is everything's that has no other.
Nested is what is an object under a key that ends in ``_config`` or is the word of a part (``encoder``, ``decoder``);
a quantiser's settings are none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

Config = Mapping[str, object]
Path = tuple[str, ...]

_WORDS = {
    "vision": "vision vit visual image images img vpm pixel",
    "audio": "audio speech sound apm",
    "text": "text language llm lm",
    "encoder": "encoder",
    "decoder": "decoder",
    "qformer": "qformer",
    "resampler": "resampler perceiver",
    "thinker": "thinker",
    "talker": "talker",
    "codec": "codec code2wav token2wav vqgan vq",
}
_WORD = {spelling: word for word, spellings in _WORDS.items() for spelling in spellings.split()}
# Words of parts that are something else than the language model.
_OTHERS = frozenset({"vision", "audio", "qformer", "resampler", "talker", "codec"})
# How weights were quantised: settings of a part, and no part.
QUANTISERS = ("quantization_config", "compression_config")
_NOT_A_PART = frozenset({*QUANTISERS, "generation_config"})
_MAX_DEPTH = 4


def nested_configs(config: Config, path: Path = ()) -> Iterator[tuple[Path, Config]]:
    """The configuration itself (path ``()``) and every one nested in it, the outer ones first."""
    yield path, config
    if len(path) >= _MAX_DEPTH:
        return
    for key, value in config.items():
        is_part = key.endswith("_config") or key in ("encoder", "decoder")
        if isinstance(value, Mapping) and is_part and key not in _NOT_A_PART:
            yield from nested_configs(value, (*path, key))


def words(name: str) -> frozenset[str]:
    """The words of a name of a tensor, or of a key, that say which part of a model it belongs to."""
    pieces = re.split(r"[._]|(?<=[a-z])(?=[A-Z])", name)
    found = {_WORD[piece.lower()] for piece in pieces if piece.lower() in _WORD}
    # `image_text_...`, and the language model of a vision model: what is not the language model, decides.
    return frozenset(found - {"text"} if found & _OTHERS else found)


def is_of_language_model(path: Path) -> bool:
    """Whether the configuration at this path describes the language model, or the whole."""
    return not words(".".join(path)) & _OTHERS


def paths_for(name: str, config: Config, applies: Callable[[Path, Config], bool]) -> list[Path]:
    """Where in a configuration stands what belongs to the tensors called `name`, among the places where it `applies`.

    More than one place only when the language model is described twice, in the outermost configuration and in a
    nested one.
    """
    places = [path for path, part in nested_configs(config) if applies(path, part)]
    parts = [path for path, _ in nested_configs(config)]
    own = words(name)
    fitting = [path for path in places if _fits(own, path, parts)]
    if not fitting:
        return []
    best = max(fitting, key=lambda path: _likeness(own, path))
    both = {(), best} if is_of_language_model(best) and not own & _OTHERS else {best}
    return [path for path in fitting if path in both]


def part_of(config: Config, path: Path) -> Config | None:
    """The configuration at a path; None when there is none."""
    part: object = config
    for key in path:
        part = part.get(key) if isinstance(part, Mapping) else None
    return part if isinstance(part, Mapping) else None


def with_part(config: Config, path: Path, part: Config) -> dict[str, object]:
    """The configuration with `part` at the path, everything else and the order of the keys as they were."""
    if not path:
        return dict(part)
    inner = config.get(path[0])
    assert isinstance(inner, Mapping)  # the path was found in this configuration
    return {**config, path[0]: with_part(inner, path[1:], part)}


def with_every_part(config: Config, change: Callable[[Path, Config], Config]) -> dict[str, object]:
    """The configuration after `change` of itself and of every one nested in it."""
    result = dict(config)
    for path, part in list(nested_configs(config)):
        result = with_part(result, path, change(path, part_of(result, path) or part))
    return result


def _fits(own: frozenset[str], path: Path, parts: Sequence[Path]) -> bool:
    theirs = words(".".join(path))
    if (own & _OTHERS) - theirs:
        # A vision model alone has no vision_config; where there is one, the outermost is the language model's.
        return not theirs and not any(own & _OTHERS & words(".".join(other)) for other in parts)
    return not (theirs - own - {"text", "thinker"})


def _likeness(own: frozenset[str], path: Path) -> tuple[int, int]:
    """How much a path is like the words of a name: words in common, then that it is a language model's own."""
    theirs = words(".".join(path))
    return len(own & theirs), int("text" in theirs)
