"""How a model was made, back to inputs that nobody made with mergeflow: a recipe, and the inputs it names.

A lock states the recipe and its inputs. Where an input is itself an output of mergeflow, the lock states how that was
made as well, as its own lock does, and so on: a merge of merges carries the whole nested recipe, also when the folders
in between are gone. Of an input's lock comes along what says how it was made, and nothing of what says where its bytes
lie.

An input's lock is a stranger's file. So what is nested is read with the same care as a lock, at most `MAX_DEPTH` deep,
and at most `MAX_BYTES` of it (as JSON) are carried for an input: when there is more, the innermost recipes are left
out first. (Inputs that share an ancestor state it each: what is nested may grow fast.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from mergeflow.errors import OutputError
from mergeflow.output.json_fields import (
    Plain,
    count,
    mapping,
    number,
    scalars,
    sequence,
    text,
    text_or_none,
    texts,
)

MAX_DEPTH = 16
MAX_BYTES = 1_000_000

Kind = Literal["weights", "delta"]


@dataclass(frozen=True, slots=True)
class LockedAdapter:
    """An adapter of an input: as the user wrote it, the commit a hub adapter was pinned to, and its factor."""

    path: str
    revision: str | None
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class LockedModel:
    """An input as it was resolved.

    Args:
        path: as the user wrote it: a folder or a hub id; empty for an adapter alone.
        revision: the commit a hub model was pinned to.
        digest: one digest for all the tensors that were used.
        tensors: digest by tensor name; may be empty.
        adapters: those added to it, in order.
        made: how the input itself was made, when mergeflow made it.
    """

    path: str
    revision: str | None
    digest: str
    tensors: Mapping[str, str] = field(default_factory=dict)
    adapters: tuple[LockedAdapter, ...] = ()
    made: Lineage | None = None


@dataclass(frozen=True, slots=True)
class Lineage:
    """How a model was made.

    Args:
        version: of the mergeflow that made it.
        recipe: the recipe's text, verbatim.
        step: the step whose result it is.
        variables: the recipe's variables as they were resolved.
        steps: one line of text per step, by name.
        models: the inputs by label, without their tensors' digests.
        tensors: how many it has.
        type: weights, or a delta.
        seed: the seed of the command line, where it was not the recipe's.
    """

    version: str
    recipe: str
    step: str
    variables: Mapping[str, Plain] = field(default_factory=dict)
    steps: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, LockedModel] = field(default_factory=dict)
    tensors: int = 0
    type: Kind = "weights"
    seed: int | None = None

    @property
    def depth(self) -> int:
        """How many recipes are nested in this one."""
        return max((1 + model.made.depth for model in self.models.values() if model.made is not None), default=0)


def bounded(lineage: Lineage, most: int = MAX_BYTES) -> Lineage | None:
    """What of a lineage may be nested in another: all of it, or without its innermost recipes; None when even one
    recipe is too much."""
    for depth in range(min(lineage.depth, MAX_DEPTH - 1), -1, -1):
        cut = _cut(lineage, depth)
        if len(json.dumps(lineage_entry(cut), ensure_ascii=False).encode("utf-8", "surrogatepass")) <= most:
            return cut
    return None


def lineage_entry(lineage: Lineage) -> dict[str, object]:
    """A lineage as plain data."""
    return {
        "mergeflow": lineage.version,
        "step": lineage.step,
        **kind_entry(lineage.type, lineage.seed),
        "recipe": lineage.recipe,
        "variables": dict(lineage.variables),
        "steps": dict(lineage.steps),
        "models": {label: model_entry(model) for label, model in lineage.models.items()},
        "tensors": lineage.tensors,
    }


def kind_entry(type_: Kind, seed: int | None) -> dict[str, object]:
    """The two fields that most outputs do not need."""
    kind: dict[str, object] = {} if type_ == "weights" else {"type": type_}
    return kind if seed is None else {**kind, "seed": seed}


def model_entry(model: LockedModel) -> dict[str, object]:
    """An input as plain data."""
    entry: dict[str, object] = {"path": model.path, "revision": model.revision, "digest": model.digest}
    if model.adapters:
        entry["adapters"] = [{"path": it.path, "revision": it.revision, "weight": it.weight} for it in model.adapters]
    entry["tensors"] = dict(model.tensors)
    return entry if model.made is None else {**entry, "made": lineage_entry(model.made)}


def parse_lineage(entry: object, where: str, depth: int = 1) -> Lineage:
    """The lineage that plain data states.

    Raises:
        OutputError: it is none, or nested too deeply.
    """
    if depth > MAX_DEPTH:
        raise OutputError(f"more than {MAX_DEPTH} recipes are nested in one another")
    fields = mapping(entry, where)
    return Lineage(
        version=text(fields.get("mergeflow"), f"{where}.mergeflow"),
        recipe=text(fields.get("recipe"), f"{where}.recipe"),
        step=text(fields.get("step"), f"{where}.step"),
        variables=scalars(fields.get("variables"), f"{where}.variables"),
        steps=texts(fields.get("steps"), f"{where}.steps"),
        models=parse_models(fields.get("models"), f"{where}.models", depth),
        tensors=count(fields.get("tensors"), f"{where}.tensors"),
        type=parse_kind(fields, where),
        seed=parse_seed(fields, where),
    )


def parse_models(entry: object, where: str, depth: int = 0) -> dict[str, LockedModel]:
    """The inputs that plain data states, nested in `depth` recipes."""
    return {label: _model(model, f"{where}.{label}", depth) for label, model in mapping(entry, where).items()}


def parse_kind(fields: Mapping[str, object], where: str) -> Kind:
    """Whether an output is weights (when nothing is said) or a delta."""
    kind = fields.get("type", "weights")
    if kind == "weights" or kind == "delta":
        return "delta" if kind == "delta" else "weights"
    raise OutputError(f"{where}.type should be weights or delta")


def parse_seed(fields: Mapping[str, object], where: str) -> int | None:
    """The seed of the command line, when there was one."""
    return None if "seed" not in fields else count(fields["seed"], f"{where}.seed")


def _model(entry: object, where: str, depth: int) -> LockedModel:
    fields = mapping(entry, where)
    return LockedModel(
        path=text(fields.get("path"), f"{where}.path"),
        revision=text_or_none(fields.get("revision"), f"{where}.revision"),
        digest=text(fields.get("digest"), f"{where}.digest"),
        tensors=texts(fields.get("tensors", {}), f"{where}.tensors"),
        adapters=tuple(
            _adapter(adapter, f"{where}.adapters")
            for adapter in sequence(fields.get("adapters", []), f"{where}.adapters")
        ),
        made=parse_lineage(fields["made"], f"{where}.made", depth + 1) if "made" in fields else None,
    )


def _adapter(entry: object, where: str) -> LockedAdapter:
    fields = mapping(entry, where)
    path, revision = fields.get("path"), fields.get("revision")
    return LockedAdapter(
        text(path, f"{where}.path"),
        text_or_none(revision, f"{where}.revision"),
        number(fields.get("weight"), f"{where}.weight"),
    )


def _cut(lineage: Lineage, depth: int) -> Lineage:
    """A lineage with at most `depth` recipes nested in it."""
    models = {
        label: replace(model, made=_cut(model.made, depth - 1) if model.made is not None and depth > 0 else None)
        for label, model in lineage.models.items()
    }
    return replace(lineage, models=models)
