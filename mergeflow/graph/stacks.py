"""Where the layers of a step's result come from, followed through the steps it is made of to models on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mergeflow.graph.arrange import StackOrigin
from mergeflow.graph.values import Result, Stack
from mergeflow.recipe.records import ModelReference, Source


def origins(
    made: Sequence[StackOrigin], inputs: Mapping[Source, Result], counts: Mapping[str, int], donor: ModelReference
) -> tuple[Stack, ...]:
    """The stacks of a step's result whose layers are not those of its donor, one by one.

    Args:
        made: the stacks by the step's own sources.
        inputs: what each source stands for.
        counts: the number of layers in each stack of the donor.
    """
    stacks = []
    for origin in made:
        layers = tuple(_origin(inputs[source], origin.prefix, layer) for source, layer in origin.layers)
        if layers != tuple((donor, layer) for layer in range(counts.get(origin.prefix, 0))):
            stacks.append(Stack(origin.prefix, layers))
    return tuple(stacks)


def _origin(result: Result, prefix: str, layer: int) -> tuple[ModelReference, int]:
    """The model and the layer there that one layer of a result comes from."""
    for stack in result.stacks:
        if stack.prefix == prefix and layer < len(stack.layers):
            return stack.layers[layer]
    return result.donor, layer
