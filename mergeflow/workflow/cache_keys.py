"""Which entries of a cache belong to a recipe: its keys, step by step, from headers and remembered digests.

Entries do not name recipes: a value belongs to every recipe that needs it. So a recipe is compiled as `plan` does it,
and what its steps are made of has keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mergeflow.errors import Problem, RecipeError, counted
from mergeflow.execute.events import Listener, Warned
from mergeflow.graph.plan import computed_keys
from mergeflow.graph.values import Compiled
from mergeflow.recipe.nearest import did_you_mean
from mergeflow.recipe.records import Recipe
from mergeflow.workflow.models import check, compile_from_headers
from mergeflow.workflow.options import Options


@dataclass(frozen=True, slots=True)
class RecipeKeys:
    """The keys of recipes: of each step those that it was the first to need."""

    steps: Mapping[str, frozenset[str]]

    @property
    def all(self) -> frozenset[str]:
        return frozenset().union(*self.steps.values())


def recipe_keys(recipes: Sequence[Recipe], options: Options, listen: Listener, steps: Sequence[str] = ()) -> RecipeKeys:
    """The keys of everything that recipes compute; of a sweep, for all of its candidates.

    Args:
        steps: only these steps; all when it is empty.

    Raises:
        RecipeError: a recipe has errors, or no recipe has a step of that name.
    """
    found: dict[str, frozenset[str]] = {}
    for recipe in recipes:
        for candidate in recipe.candidates or (recipe,):
            for step, keys in _keys(candidate, options, listen).items():
                found[step] = found.get(step, frozenset()) | keys
    unknown = [name for name in steps if name not in found]
    if unknown:
        raise RecipeError([Problem(_no_step(name, found)) for name in unknown])
    return RecipeKeys({step: keys for step, keys in found.items() if not steps or step in steps})


def _keys(recipe: Recipe, options: Options, listen: Listener) -> dict[str, frozenset[str]]:
    compiled = compile_from_headers(recipe, listen, download=False, state=options.state)
    check(compiled, strict=False)
    _warn_of_missing_digests(recipe, compiled, listen)
    nodes = {step: set(result.nodes) for step, result in compiled.results.items()}
    for output in compiled.outputs:  # rounded to what the output is stored in
        nodes[output.output.step].update(tensor.node for tensor in output.tensors)
    return {step: frozenset(computed_keys(compiled.graph[i] for i in mine)) for step, mine in nodes.items()}


def _warn_of_missing_digests(recipe: Recipe, compiled: Compiled, listen: Listener) -> None:
    missing = sum(1 for node in compiled.graph if node.kind == "load" and node.key is None)
    if missing:
        tensors = counted(missing, "input tensor")
        message = (
            f"{tensors} of {recipe.file} have not been read on this machine yet; what depends on them is not found"
        )
        listen(Warned(message))


def _no_step(name: str, steps: Iterable[str]) -> str:
    return f"no step is called {name!r}{did_you_mean(name, list(steps), 'steps')}"
