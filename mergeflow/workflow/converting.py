"""A mergekit file in the native form, as a text: the recipe's part of it, and what only the methods know."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mergeflow.methods.registry import find_method
from mergeflow.methods.schema import Method
from mergeflow.recipe.convert import Target, convert
from mergeflow.recipe.nodes import join
from mergeflow.recipe.places import all_parameters
from mergeflow.recipe.records import Recipe, Step


def convert_recipe(recipe: Recipe, folder: Path) -> str:
    """The native form of a mergekit file that will stand in `folder`.

    Raises:
        RecipeError: the file has errors, is a native recipe, or says something that the native form cannot.
    """
    ignored = [path for step in recipe.steps for path in _without_effect(step)]
    return convert(recipe, ignored, Target(folder))


def _without_effect(step: Step) -> Iterator[str]:
    """The parameters of a step that its method never looks up where they stand: mergekit ignores them."""
    try:
        method = find_method(step.merge_method)
    except ValueError:  # a plug-in that cannot be used: `validate` says so
        return
    if method is None:
        return
    for parameters, path in all_parameters(step):
        of_one_model = path.endswith((".parameters",)) and (".sources[" in path or "models[" in path)
        for name in parameters:
            if not _is_looked_up(method, name, of_one_model=of_one_model):
                yield join(step.path, f"{path}.{name}")


def _is_looked_up(method: Method, name: str, *, of_one_model: bool) -> bool:
    declared = method.parameter(name)
    return declared is not None and not (of_one_model and declared.scope == "shared")
