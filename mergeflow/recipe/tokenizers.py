"""Of which models a recipe needs the tokenizer, and of which only the chat template: of most, neither is read."""

from __future__ import annotations

from collections.abc import Sequence

from mergeflow.recipe.cycles import reached
from mergeflow.recipe.places import named_sources
from mergeflow.recipe.records import ModelReference, Recipe, Step


def models_with_tokenizers(recipe: Recipe) -> frozenset[ModelReference]:
    """The models whose tokens must be known: those of a step with a vocabulary, through the steps it reads."""
    merged = [step for step in recipe.steps if step.vocabulary is not None]
    return _models(recipe, merged)


def models_with_copied_tokenizers(recipe: Recipe) -> frozenset[ModelReference]:
    """The models whose tokenizer an output gets as it is."""
    named = [output.tokenizer for output in recipe.outputs]
    return frozenset(source for source in named if isinstance(source, ModelReference))


def models_with_templates(recipe: Recipe) -> frozenset[ModelReference]:
    """The models of the steps that choose the chat template most of their models have."""
    chosen = [step for step in recipe.steps if step.chat_template == "auto"]
    return _models(recipe, chosen)


def _models(recipe: Recipe, steps: Sequence[Step]) -> frozenset[ModelReference]:
    """Every model that some steps read, through the steps they read."""
    needed = reached(recipe.steps, [step.name for step in steps])
    sources = (source for step in recipe.steps if step.name in needed for source, _ in named_sources(step))
    return frozenset(source for source in sources if isinstance(source, ModelReference))
