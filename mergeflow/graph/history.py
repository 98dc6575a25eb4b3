"""What a recipe's tensors were made of, kept from one run to the next, to say why something must run.

    History ── models   label -> files -> tensors -> digest
            ── versions of every operation;  seed
            ── steps    name  -> settings as written, by path
                              -> per tensor: key, what it is read from, how it is made

It explains, and decides nothing: whether a value is reused depends on its key alone. So digests and keys are
shortened: two that agree in their first 48 bits and not in the rest would only go unmentioned. How a tensor is made
(its resolved parameters, each with the path where a user would change it) is the same for many tensors of a step and
is kept once: a `Making`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from mergeflow.graph.ingredients import Ingredients
from mergeflow.graph.nodes import Graph
from mergeflow.graph.values import Compiled, Parameters, Result
from mergeflow.graph.within import read_by, row_maps
from mergeflow.graph.written import value_text, written_settings
from mergeflow.methods.ops import OPS
from mergeflow.models.records import Checkpoint, TensorSource, TensorView
from mergeflow.recipe.records import ModelReference, Recipe, Setting, Source, Step, StepReference

KEY_LENGTH = 12
STATISTIC_LENGTH = 8
UNKNOWN = "-" * KEY_LENGTH
STEP = "step:"


class ResolvedValue(NamedTuple):
    """A parameter of one tensor.

    Args:
        owner: the input it belongs to; empty for a shared one.
        path: in the step: where the value was found, or where it would be set.
        text: the value.
    """

    owner: str
    name: str
    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Making:
    """How tensors of a step are made, but for the bytes of what they are made from.

    Args:
        rounded: the formats that the result is rounded to.
        words: a digest of how embeddings were put in order; empty where they were not.
    """

    values: tuple[ResolvedValue, ...] = ()
    rounded: str = ""
    words: str = ""


# What a tensor is made from: label of the source and name there, "" for the name of the tensor itself.
Reading = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class StepHistory:
    """One step. `identity` is what a user's own method was known by; `statistics` are keys, shortened further."""

    method: str
    settings: Mapping[str, str] = field(default_factory=dict)
    identity: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    makings: Mapping[str, Making] = field(default_factory=dict)
    reads: Mapping[str, Reading] = field(default_factory=dict)
    statistics: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class FileHistory:
    """One file of weights: bytes, time of its last change, and the digests of its tensors by name."""

    size: int
    mtime_ns: int
    digests: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class History:
    """A run of a recipe. `models` are files by label of the file, by label of the model."""

    seed: int = 0
    versions: Mapping[str, int] = field(default_factory=dict)
    models: Mapping[str, Mapping[str, FileHistory]] = field(default_factory=dict)
    steps: Mapping[str, StepHistory] = field(default_factory=dict)


def history_of(recipe: Recipe, compiled: Compiled) -> History:
    """What the recipe is made of now."""
    graph = compiled.graph
    return History(
        seed=recipe.seed,
        versions={op: OPS[op].version for op in sorted({node.op for node in graph if node.kind != "load"})},
        models=dict(_models(recipe, compiled)),
        steps={step.name: _step(step, compiled) for step in recipe.steps if step.name in compiled.results},
    )


def label_of(source: Source) -> str:
    """What a source is called in a history."""
    return STEP + source.name if isinstance(source, StepReference) else str(source)


def shortened(key: str | None) -> str:
    """The part of a key that a history keeps."""
    return UNKNOWN if key is None else key[:KEY_LENGTH]


def shown_model(recipe: Recipe, source: ModelReference) -> str:
    """A model by its name in the recipe, else as the user wrote it."""
    return next((alias for alias, reference in recipe.models.items() if reference == source), str(source))


def shown_file(recipe: Recipe, source: ModelReference, checkpoint: Checkpoint, path: str) -> str:
    """A file of a model as the user would name it: ``math/model-00002.safetensors``."""
    label, folder = shown_model(recipe, source), str(checkpoint.folder)
    if path == folder:
        return label
    if checkpoint.folder is None or path.startswith(folder + os.sep) or not source.adapters:
        base = label if label in recipe.models else source.path or label
        return f"{base}/{os.path.basename(path)}"
    # An adapter's file: several adapters have files of one name.
    named = [it.path for it in source.adapters if os.path.basename(it.path) == os.path.basename(os.path.dirname(path))]
    return f"{named[0] if named else os.path.basename(os.path.dirname(path))}/{os.path.basename(path)}"


def file_of(tensor: TensorSource) -> str:
    """The path of the file that a tensor lies in (of one put together from several: the first)."""
    return tensor.segments[0].file.path if tensor.segments else ""


def _models(recipe: Recipe, compiled: Compiled) -> Iterator[tuple[str, Mapping[str, FileHistory]]]:
    # Most tensors have a node of their own: an id costs less than the hash of a record with records inside.
    keys = {id(node.source): node.key for node in compiled.graph if node.source is not None}
    for source, checkpoint in compiled.checkpoints.items():
        files: dict[str, tuple[int, int, dict[str, str]]] = {}
        paths: dict[str, str] = {}
        for tensor in _sources(checkpoint):
            path = file_of(tensor)
            if path not in paths:
                paths[path] = shown_file(recipe, source, checkpoint, path)
                identity = tensor.segments[0].file if tensor.segments else None
                size, time = (identity.size, identity.mtime_ns) if identity is not None else (0, 0)
                files.setdefault(paths[path], (size, time, {}))
            key = keys[id(tensor)] if id(tensor) in keys else compiled.graph.digests.get(tensor)
            files[paths[path]][2][tensor.name] = shortened(key)
        yield str(source), {label: FileHistory(*found) for label, found in files.items()}


def _sources(checkpoint: Checkpoint) -> Iterator[TensorSource]:
    for tensor in checkpoint.tensors.values():
        if isinstance(tensor, TensorView):
            yield from tensor.sources()
        else:
            yield tensor


def _step(step: Step, compiled: Compiled) -> StepHistory:
    graph, result = compiled.graph, compiled.results[step.name]
    keys, makings, reads = {}, {}, {}
    makers = _Makers(step, graph, _nodes_of_steps(step, compiled) if step.vocabulary is not None else frozenset())
    known_reads: dict[object, Reading] = {}
    for name, tensor in result.tensors.items():
        keys[name] = shortened(graph[tensor.node].key)
        read = read_by(step, result, name)
        pattern = tuple([(source, "" if its_name == name else its_name) for source, its_name in read])
        if pattern not in known_reads:
            known_reads[pattern] = tuple((label_of(source), its_name) for source, its_name in pattern)
        reads[name] = known_reads[pattern]
        makings[name] = makers.of(name, tensor.node, result.parameters.get(name), read)
    statistics = [node.key for i in result.nodes if (node := graph[i]).kind == "statistic"]
    return StepHistory(
        method=step.merge_method,
        settings=written_settings(step),
        identity=_identity(result, graph),
        keys=keys,
        makings=makings,
        reads=reads,
        statistics=frozenset(key[:STATISTIC_LENGTH] for key in statistics if key is not None),
    )


def _nodes_of_steps(step: Step, compiled: Compiled) -> frozenset[int]:
    """Every tensor of the steps that a step reads."""
    results = [compiled.results[source.name] for source in step.sources() if isinstance(source, StepReference)]
    return frozenset(tensor.node for result in results for tensor in result.tensors.values())


def _identity(result: Result, graph: Graph) -> Mapping[str, str]:
    """What a user's method is known by: its version, its package, the digest of its source."""
    for i in result.nodes:
        if graph[i].op.startswith("own_"):
            known = graph[i].parameters.get("method")
            return {field: str(value) for field, value in known.items()} if isinstance(known, Mapping) else {}
    return {}


@dataclass
class _Makers:
    """The makings of one step's tensors, each made once."""

    step: Step
    graph: Graph
    read: frozenset[int]
    known: dict[object, Making] = field(default_factory=dict)
    questions: dict[Ingredients, dict[tuple[int | None, str], str | None]] = field(default_factory=dict)

    def of(self, name: str, node: int, made: Parameters | None, read: tuple[tuple[Source, str], ...]) -> Making:
        rounded = _rounding(self.graph, node) if self.step.dtype or self.step.out_dtype else ""
        words = row_maps(self.graph, node, self.read) if self.step.vocabulary is not None else ""
        if made is None or made.ingredients is None:
            return self.known.setdefault((rounded, words), Making((), rounded, words))
        paths = self._paths(made.ingredients, made, name, read)
        identity = (
            made.ingredients,
            made.places,
            tuple(made.shared.values()),
            tuple([tuple(own.values()) for own in made.inputs]),
            paths,
            rounded,
            words,
        )
        if identity not in self.known:
            self.known[identity] = Making(tuple(self._values(made, name, read)), rounded, words)
        return self.known[identity]

    def _paths(
        self, ingredients: Ingredients, made: Parameters, name: str, read: tuple[tuple[Source, str], ...]
    ) -> tuple[str, ...]:
        """The paths of the values whose place depends on the tensor's name, by filters."""
        if ingredients not in self.questions:
            asked: list[tuple[int | None, str]] = [(None, parameter) for parameter in made.shared]
            asked += [(place, parameter) for place in range(len(ingredients.inputs)) for parameter in _own(made)]
            self.questions[ingredients] = {it: _fixed_path(ingredients, *it) for it in asked}
        questions = self.questions[ingredients]
        if None not in questions.values():
            return ()
        return tuple(value.path for value in self._values(made, name, read))

    def _values(self, made: Parameters, name: str, read: tuple[tuple[Source, str], ...]) -> Iterator[ResolvedValue]:
        ingredients = made.ingredients
        assert ingredients is not None  # asked for by the caller
        names = dict(read)
        seen: dict[str, int] = {}
        for place, own in zip(made.places, made.inputs, strict=True):
            source = ingredients.inputs[place].source
            label = label_of(source)
            seen[label] = seen.get(label, 0) + 1
            owner = label if seen[label] == 1 else f"{label} #{seen[label]}"
            for parameter, value in own.items():
                path = self._path(ingredients, place, parameter, names.get(source, name))
                yield ResolvedValue(owner, parameter, path, value_text(value))
        for parameter, value in made.shared.items():
            yield ResolvedValue("", parameter, self._path(ingredients, None, parameter, name), value_text(value))

    def _path(self, ingredients: Ingredients, place: int | None, parameter: str, name: str) -> str:
        fixed = self.questions[ingredients].get((place, parameter))
        return fixed if fixed is not None else _found_path(ingredients, place, parameter, name)


def _own(made: Parameters) -> tuple[str, ...]:
    return tuple(made.inputs[0]) if made.inputs else ()


def _fixed_path(ingredients: Ingredients, place: int | None, parameter: str) -> str | None:
    """Where a parameter is set for every tensor, or would be; None where filters decide."""
    levels = ingredients.levels if place is None else ingredients.inputs[place].levels
    having = [level for level in levels if parameter in level.parameters]
    if not having:
        return f"{levels[0].path}.{parameter}" if levels else parameter
    first = having[0].parameters[parameter]
    decides = any(branch.filter in (None, "", "*") and branch.value != () for branch in first.branches)
    return f"{having[0].path}.{parameter}" if decides or len(having) == 1 else None


def _found_path(ingredients: Ingredients, place: int | None, parameter: str, name: str) -> str:
    """Where a parameter is set for the tensor called `name`."""
    levels = ingredients.levels if place is None else ingredients.inputs[place].levels
    having = [level for level in levels if parameter in level.parameters]
    deciding = [level for level in having if _says(level.parameters[parameter], name)]
    return f"{(deciding or having)[0].path}.{parameter}"


def _says(setting: Setting, name: str) -> bool:
    return any(branch.matches(name) and branch.value != () for branch in setting.branches)


def _rounding(graph: Graph, node: int) -> str:
    """The formats a value was rounded to, last first."""
    found = []
    while graph[node].op == "cast":
        found.append(str(graph[node].parameters["dtype"]))
        node = graph[node].inputs[0]
    return ", ".join(found)
