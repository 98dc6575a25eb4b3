"""What one input of a step has: its tensors by stack, layer and the rest of the name, and those outside the layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from mergeflow.graph.nodes import Graph
from mergeflow.graph.values import Result
from mergeflow.methods.schema import ValueType
from mergeflow.models.layout import Layout, infer_layout
from mergeflow.models.tied import tied_name


@dataclass(frozen=True)
class Stock:
    """The tensors of one model or step, as names and shapes.

    Args:
        config: of the model it is, or whose configuration belongs to it.
    """

    label: str
    type: ValueType
    shapes: Mapping[str, tuple[int, ...]]
    config: Mapping[str, object]

    @cached_property
    def layout(self) -> Layout:
        return infer_layout(self.shapes)

    @cached_property
    def layers(self) -> Mapping[tuple[str, int], tuple[str, ...]]:
        """(stack, layer) -> the rests of the names in that layer, in order."""
        found: dict[tuple[str, int], list[str]] = {}
        for name in self.shapes:
            stack, layer, rest = split_name(name, self.layout)
            if layer is not None:
                found.setdefault((stack, layer), []).append(rest)
        return {place: tuple(rests) for place, rests in found.items()}

    @cached_property
    def kinds(self) -> frozenset[str]:
        """The names without stack and number for what lies in layers: the roles a tensor can have in this model."""
        return frozenset(split_name(name, self.layout)[2] for name in self.shapes)

    def holding(self, name: str, shape: tuple[int, ...]) -> str | None:
        """The tensor to read for `name`: the one of that name, or one that is tied to it."""
        if name in self.shapes:
            return name
        return tied_name(name, shape, self.shapes, self.config) if self.type == "weights" else None


def split_name(name: str, layout: Layout) -> tuple[str, int | None, str]:
    """A tensor's stack, its layer and the rest of its name; outside the layers "", None and the name."""
    place = layout.place(name)
    if place.stack is None or place.layer is None:
        return "", None, name
    return place.stack, place.layer, name[len(layer_name(place.stack, place.layer, "")) :]


def layer_name(stack: str, layer: int, rest: str) -> str:
    """The name of a tensor in a layer: what `split_name` takes apart."""
    return f"{stack}.{layer}.{rest}"


def stock_of(graph: Graph, result: Result, config: Mapping[str, object]) -> Stock:
    """The stock of a compiled model or step."""
    shapes = {name: graph[tensor.node].shape for name, tensor in result.tensors.items()}
    return Stock(result.label, result.type, shapes, config)


def all_names(stocks: Iterable[Stock]) -> dict[str, tuple[int, ...]]:
    """Every name, with the shape it has in the first that has it: those of the first in their order, then the rest."""
    found: dict[str, tuple[int, ...]] = {}
    for stock in stocks:
        for name, shape in stock.shapes.items():
            found.setdefault(name, shape)
    return found
