"""The output's config.json: the donor's, saying what number format its weights now have.

Nothing else is touched, the order of the keys included. Old configurations call the format ``torch_dtype``, new ones
``dtype``; the output keeps the donor's word. A model made of several (a vision tower and a language model) has a
configuration for each: those that had the format of the whole follow it, one that differed on purpose stays.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

_WORDS = ("dtype", "torch_dtype")


def merged_config(donor_config: Mapping[str, object], dtype: str | None) -> dict[str, object]:
    """The donor's configuration for weights stored as `dtype` (``bfloat16``); None: as the donor says."""
    if dtype is None:
        return dict(donor_config)
    earlier = {_plain(donor_config[word]) for word in _WORDS if word in donor_config}
    config = _with_dtype(donor_config, earlier, dtype)
    return config if earlier else {**config, "dtype": dtype}


def config_json(config: Mapping[str, object]) -> str:
    """The text of config.json, as transformers lays it out (two spaces), keys in the order they have."""
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


def _with_dtype(config: Mapping[str, object], earlier: set[object], dtype: str) -> dict[str, object]:
    """`config` with every format that is among `earlier` (any, when that is empty) set to `dtype`, nested ones too."""
    result = dict(config)
    for key, value in config.items():
        if key in _WORDS and (not earlier or _plain(value) in earlier):
            result[key] = dtype
        elif isinstance(value, dict) and key.endswith("_config") and key != "quantization_config":
            result[key] = _with_dtype(value, earlier, dtype)
    return result


def _plain(value: object) -> object:
    return value.removeprefix("torch.") if isinstance(value, str) else repr(value)
