"""The output's config.json: the donor's, saying what number format its weights now have.

Nothing else is touched, the order of the keys included. Old configurations call the format ``torch_dtype``, new ones
``dtype``; the output keeps the donor's word. A model made of several (a vision tower and a language model) has a
configuration for each: those that had the format of the whole follow it, one that differed on purpose stays.
"""

from __future__ import annotations

from collections.abc import Mapping

from mergeflow.models.config_parts import Config, Path, with_every_part

_WORDS = ("dtype", "torch_dtype")


def merged_config(donor_config: Mapping[str, object], dtype: str | None) -> dict[str, object]:
    """The donor's configuration for weights stored as `dtype` (``bfloat16``); None: as the donor says."""
    if dtype is None:
        return dict(donor_config)
    earlier = {_plain(donor_config[word]) for word in _WORDS if word in donor_config}

    def change(_: Path, part: Config) -> Config:
        """A part whose format was that of the whole (any, when the whole has none) follows."""
        theirs = [word for word in _WORDS if word in part and (not earlier or _plain(part[word]) in earlier)]
        return {**part, **dict.fromkeys(theirs, dtype)}

    config = with_every_part(donor_config, change)
    return config if earlier else {**config, "dtype": dtype}


def _plain(value: object) -> object:
    return value.removeprefix("torch.") if isinstance(value, str) else repr(value)
