"""Tied weights: one matrix under several names, of which a checkpoint need hold only one.

A language model's output head is often its input embedding. Such a checkpoint has no head (or, rarely, no embedding),
and its config.json says ``tie_word_embeddings``. Beside models that have both, the one it has stands for the other.
A configuration that says no is believed; one that says nothing may be tied, as in mergekit, which does not ask it.
"""

from __future__ import annotations

from collections.abc import Mapping

from mergeflow.models.config_vocabulary import says_untied
from mergeflow.models.vocabulary import is_embedding, is_head


def tied_name(
    name: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, object]
) -> str | None:
    """The tensor that stands for `name` in a model that lacks it; None when none does.

    Args:
        shape: of the tensor `name` in the models that have it: another matrix is not tied to it.
        shapes: of the tensors of the model that lacks it, by name.
        config: of that model.
    """
    if not _is_vocabulary(name) or says_untied(config):
        return None
    others = [it for it, its_shape in shapes.items() if its_shape == shape and it != name and _is_vocabulary(it)]
    # An encoder-decoder has up to four names for its one matrix: `shared` first, then what is most alike.
    return max(others, key=lambda other: _likeness(name, other), default=None)


def _is_vocabulary(name: str) -> bool:
    return is_head(name) or is_embedding(name)


def _likeness(name: str, other: str) -> tuple[bool, bool, int]:
    pairs = zip(name.split("."), other.split("."), strict=False)
    alike = next((index for index, (left, right) in enumerate(pairs) if left != right), 0)
    return other.startswith("shared."), is_embedding(other), alike
