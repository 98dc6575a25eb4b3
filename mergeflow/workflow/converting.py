"""A mergekit file in the native form, as a text: the recipe's part of it, and what only the methods know."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mergeflow.graph.check import without_effect
from mergeflow.methods.registry import find_method
from mergeflow.recipe.convert import convert
from mergeflow.recipe.nodes import join
from mergeflow.recipe.records import Recipe, Step


def convert_recipe(recipe: Recipe, folder: Path) -> str:
    """The native form of a mergekit file that will stand in `folder`.

    Raises:
        RecipeError: the file has errors, is a native recipe, or says something that the native form cannot.
    """
    ignored = [path for step in recipe.steps for path in _without_effect(step)]
    return convert(recipe, ignored, folder)


def _without_effect(step: Step) -> Iterator[str]:
    """Where in the file the parameters stand that mergekit ignores."""
    try:
        method = find_method(step.merge_method)
    except ValueError:  # a plug-in that cannot be used: `validate` says so
        return
    if method is not None:
        yield from (join(step.path, path) for path in without_effect(step, method))
