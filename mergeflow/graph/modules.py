"""Which tensors belong to which module of a step: stacks of layers by their names, and what lies nearest to them.

A module is named by its stack's prefix (``model.visual.blocks``), by consecutive parts of it (``visual``,
``encoder``), or by mergekit's word for its role:

    text_decoder            the stacks that are neither vision nor projector
    vision_tower            the stacks with vision, visual or image in their prefix
    multi_modal_projector   tensors (and stacks) with projector, merger, connector or aligner in their name
    default                 everything, in a model of one stack; else what lies nearest to no stack
    shared                  what lies nearest to no stack

A tensor outside the layers belongs to the projector when its name says so, else to the module of its nearest stack;
one that no stack is nearest to (an output head) to `shared` or `default`, else to the text's module.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mergeflow.graph.check import Finding
from mergeflow.graph.ingredients import Part
from mergeflow.graph.stock import split_name
from mergeflow.models.layout import Layout
from mergeflow.recipe.nearest import did_you_mean

_VISION = re.compile(r"vision|visual|image|audio|speech", re.IGNORECASE)
_PROJECTOR = re.compile(r"projector|merger|connector|aligner|mm_input_projection|mm_soft_emb|deepstack", re.IGNORECASE)
_LOOSE = ("shared", "default")
_ROLES = ("text_decoder", "vision_tower", "vision_model", "multi_modal_projector", *_LOOSE)


@dataclass(frozen=True, slots=True)
class Domain:
    """The tensors that one part of a step makes: whole stacks of layers, and names outside them (None: all names)."""

    part: Part
    stacks: tuple[str, ...]
    names: frozenset[str] | None

    def has(self, name: str) -> bool:
        return self.names is None or name in self.names


def divide(
    parts: Sequence[Part], layout: Layout, names: Sequence[str]
) -> tuple[list[Domain], list[str], list[Finding]]:
    """The domain of each part, the names that are in none, and what is wrong."""
    if parts[0].module is None:
        return [Domain(parts[0], tuple(layout.stacks), None)], [], []
    stacks, problems = _stacks_of(parts, layout)
    if problems:
        return [], [], problems
    owners = {stack: part.path for part in parts for stack in stacks[part.path]}
    taken: dict[str, set[str]] = {part.path: set() for part in parts}
    left = []
    for name in names:
        owner = _owner(name, layout, owners, parts)
        if owner is None:
            left.append(name)
        else:
            taken[owner].add(name)
    return [Domain(part, stacks[part.path], frozenset(taken[part.path])) for part in parts], left, []


def _stacks_of(parts: Sequence[Part], layout: Layout) -> tuple[dict[str, tuple[str, ...]], list[Finding]]:
    """The stacks of each part, by its path."""
    found: dict[str, tuple[str, ...]] = {}
    owner: dict[str, str] = {}
    problems: list[Finding] = []
    for part in parts:
        name = part.module or ""
        stacks = _named(name, layout)
        if not stacks and name not in _ROLES:
            message = f"there is no module {name!r}{did_you_mean(name, _choices(layout), 'modules')}"
            problems.append(Finding(part.path, message))
        for stack in stacks:
            if stack in owner:
                message = f"{name!r} and {owner[stack]!r} both name the layers in {stack}"
                problems.append(Finding(part.path, message))
            owner.setdefault(stack, name)
        found[part.path] = stacks
    return found, problems


def _named(name: str, layout: Layout) -> tuple[str, ...]:
    """The stacks that a module's name means."""
    stacks = tuple(layout.stacks)
    if name in stacks:
        return (name,)
    if name == "default":
        return stacks if len(stacks) == 1 else ()
    holding = tuple(stack for stack in stacks if f".{name}." in f".{stack}.")
    plain = tuple(stack for stack in holding if not _VISION.search(stack)) if not _VISION.search(name) else holding
    if plain or holding:
        return plain or holding
    if name in ("vision_tower", "vision_model"):
        return tuple(stack for stack in stacks if _VISION.search(stack) and not _PROJECTOR.search(stack))
    if name == "multi_modal_projector":
        return tuple(stack for stack in stacks if _PROJECTOR.search(stack))
    if name == "text_decoder":
        return tuple(stack for stack in stacks if not _VISION.search(stack) and not _PROJECTOR.search(stack))
    return ()


def _choices(layout: Layout) -> Iterator[str]:
    yield from layout.stacks
    yield from dict.fromkeys(part for stack in layout.stacks for part in stack.split("."))
    yield from _ROLES


def _owner(name: str, layout: Layout, owners: Mapping[str, str], parts: Sequence[Part]) -> str | None:
    """The path of the part that makes a tensor; None when none does."""
    stack, layer, _ = split_name(name, layout)
    if layer is not None:
        return owners.get(stack)
    by_name = {part.module: part.path for part in parts}
    if _PROJECTOR.search(name):
        return by_name.get("multi_modal_projector") or by_name.get("default")
    nearest = layout.place(name).stack
    if nearest is not None and nearest in owners:
        return owners[nearest]
    if nearest is not None and (_VISION.search(nearest) or _VISION.search(name)):
        return None
    loose = next((by_name[word] for word in _LOOSE if word in by_name), None)
    return loose or _text_part(owners) if nearest is None or loose else None


def _text_part(owners: Mapping[str, str]) -> str | None:
    """The part with the language model's layers: of several stacks that are no vision, the decoder's."""
    plain = [stack for stack in owners if not _VISION.search(stack) and not _PROJECTOR.search(stack)]
    decoders = [stack for stack in plain if "encoder" not in stack.split(".")] or plain
    return owners[decoders[0]] if decoders else None
