"""Which tensor of a base an adapter means: the same model is called by several prefixes.

Transformers builds a model with a head around the one that was saved, or the other way round, and renames the parts of
models with a vision tower from one version to the next. So a name that the base has not is looked for

1. under the other spellings that are known (`model.language_model.` for `language_model.model.`, `.mlp.` for Mixtral's
   `.block_sparse_moe.`);
2. without up to two of its leading parts, numbers excepted, as the end of a name that only one tensor has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

_PREFIXES = (
    ("model.language_model.", "language_model.model."),
    ("language_model.model.", "model.language_model."),
    ("model.visual.", "visual."),
    ("visual.", "model.visual."),
    ("model.vision_tower.", "vision_tower."),
    ("vision_tower.", "model.vision_tower."),
    ("model.", "model.language_model."),
    ("model.", "language_model.model."),
)
_PARTS = ((".mlp.", ".block_sparse_moe."), (".block_sparse_moe.", ".mlp."))
MOST_DROPPED = 2
# More than a name has before its layer's number and behind it.
MOST_PARTS = 16
# What is left of a name must still say which module of which layer it is.
LEAST_LEFT = 2


class BaseNames:
    """The names of a base's tensors, ready to be looked for by their ends."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = set(names)

    def find(self, name: str) -> str | None:
        """The base's name of the tensor that an adapter calls `name`; None when it has none, or several."""
        for spelling in _spellings(name):
            if spelling in self._names:
                return spelling
        parts = name.split(".", MOST_DROPPED)
        for dropped in range(len(parts)):
            if parts[:dropped] and parts[dropped - 1].isdigit():
                break
            tail = ".".join(parts[dropped:])
            if tail.count(".") >= LEAST_LEFT - 1 and tail in self._tails:
                return self._tails[tail]
        return None

    @cached_property
    def _tails(self) -> Mapping[str, str | None]:
        """The ends of the names, from a dot on -> the name; None where several names end so."""
        found: dict[str, str | None] = {}
        for name in self._names:
            tail, dot = name, "."
            for _ in range(MOST_PARTS):
                found[tail] = None if tail in found else name
                _, dot, tail = tail.partition(".")
                if not dot:
                    break
        return found


def _spellings(name: str) -> Iterator[str]:
    yield name
    for here, there in _PREFIXES:
        if name.startswith(here):
            yield there + name[len(here) :]
    for here, there in _PARTS:
        if here in name:
            yield name.replace(here, there)
