"""What has changed since the last run, tensor by tensor: the history of then held against that of now.

A tensor of a step is said to have changed if and only if its key has (or is not known yet). Only then is it asked why,
and only what this tensor depends on is an answer:

    own         its parameters as they resolve for it, the tensors of files that it is made from, which models and
                layers those are, rounding, row maps of its vocabulary, versions of its operations, the seed
    upstream    the steps it reads whose tensor of that name has changed, with what happened there or further up

Steps are looked at in the order they are computed in, so that a chain of any length takes no recursion, and an answer
further up is there when it is needed. A step of another name that has the old one's keys, or says the same, is that
step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from mergeflow.graph.check import step_path
from mergeflow.graph.history import (
    STATISTIC_LENGTH,
    STEP,
    UNKNOWN,
    History,
    Making,
    Reading,
    StepHistory,
    label_of,
    shown_model,
)
from mergeflow.graph.model_changes import ModelChanges
from mergeflow.graph.order import steps_in_order
from mergeflow.graph.reasons import NOTHING, Causes, Reason
from mergeflow.graph.renamed import former_names
from mergeflow.graph.values import Compiled
from mergeflow.graph.within import Within, reached, read_by, within
from mergeflow.graph.written import UNSET
from mergeflow.methods.ops import OPS
from mergeflow.recipe.records import ModelReference, Recipe, Source, Step, StepReference

# As many of the reasons further up are handed on.
MOST_ROOTS = 8

_STRUCTURE = (".model", "base_model", ".layer_range")
_WORDS = "tokenizer"


@dataclass
class Changes:
    """The changes since a run.

    Args:
        found: the causes of every tensor that has changed, by step.
        former: the name that each step had; `names_now` the other way round.
        versions: those of operations that are others than they were.
    """

    recipe: Recipe
    compiled: Compiled
    then: History
    now: History
    found: dict[str, dict[str, Causes]] = field(default_factory=dict)
    former: Mapping[str, str] = field(init=False)
    names_now: Mapping[str, str] = field(init=False)
    versions: Mapping[str, int] = field(init=False)
    models: dict[ModelReference, ModelChanges] = field(default_factory=dict)
    _compared: dict[tuple[int, int], tuple[tuple[str, Reason], ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.former = former_names(self.then, self.now)
        self.names_now = {old: new for new, old in self.former.items()}
        before = self.then.versions
        self.versions = {op: it for op, it in self.now.versions.items() if before.get(op, it) != it}
        for step in steps_in_order(self.recipe.steps):
            if step.name in self.now.steps:
                self.found[step.name] = dict(self._changed(step))

    def of(self, step: str, tensor: str) -> Causes:
        """Why a tensor of a step has changed; nothing when it has not."""
        return self.found[step].get(tensor, NOTHING)

    def of_statistic(self, step: Step, tensor: str, node: int) -> Causes:
        """Why a statistic on the way to a tensor has; nothing when the last run had it too."""
        key, former = self.compiled.graph[node].key, self.former.get(step.name)
        if former is None:
            return self.of(step.name, tensor)
        if key is not None and key[:STATISTIC_LENGTH] in self.then.steps[former].statistics:
            return NOTHING
        return _Tensor(self, step, tensor, node, is_whole=False).causes() or self.of(step.name, tensor)

    def _changed(self, step: Step) -> Iterator[tuple[str, Causes]]:
        now, former = self.now.steps[step.name], self.former.get(step.name)
        if former is None:
            new = Causes((Reason("setting", f"step {step.name} is new"),))
            yield from ((name, new) for name in now.keys)
            return
        keys = self.then.steps[former].keys
        result = self.compiled.results[step.name]
        for name, key in now.keys.items():
            if key == UNKNOWN or keys.get(name) != key:
                made = _Tensor(self, step, name, result.tensors[name].node)
                yield name, made.causes() or Causes((made.otherwise(),))

    def compared(self, step: Step, then: Making, now: Making) -> tuple[tuple[str, Reason], ...]:
        """The parameters that resolve to other values, each with its owner. Makings are shared by many tensors."""
        pair = (id(then), id(now))
        if pair not in self._compared:
            self._compared[pair] = tuple(self._compare(step, then, now))
        return self._compared[pair]

    def _compare(self, step: Step, then: Making, now: Making) -> Iterator[tuple[str, Reason]]:
        old = {(self.relabelled(value.owner), value.name): value for value in then.values}
        then_step, now_step = self.then.steps[self.former[step.name]], self.now.steps[step.name]
        for value in now.values:
            before = old.get((value.owner, value.name))
            if before is not None and before.text != value.text:
                written = then_step.settings.get(before.path, UNSET), now_step.settings.get(value.path, UNSET)
                setting = written if written[0] != written[1] else None
                if then_step.method != now_step.method and setting is None:
                    continue  # another method's default
                about = shown_path(self.recipe, step, value.path)
                yield value.owner, Reason("parameter", about, before.text, value.text, setting)

    def relabelled(self, label: str) -> str:
        """The label that a source of the last run has now."""
        if not label.startswith(STEP):
            return label
        name, mark, number = label.removeprefix(STEP).partition(" #")
        return f"{STEP}{self.names_now.get(name, name)}{mark}{number}"

    def model(self, source: ModelReference) -> ModelChanges:
        """What has changed of a model's files."""
        if source not in self.models:
            self.models[source] = ModelChanges.between(self.recipe, self.compiled, source, self.then, self.now)
        return self.models[source]


def shown_path(recipe: Recipe, step: Step, path: str) -> str:
    """A path of a step as a user would point at it: ``skills.models[0].parameters.density``."""
    whole = step_path(step, recipe.form, path)
    prefix = step.path or ("" if recipe.form == "mergekit" else f"steps.{step.name}")
    rest = whole[len(prefix) :].lstrip(".")
    return f"{step.name}.{rest}" if prefix else rest


class _Tensor:
    """One value of one step that has changed: a tensor, or (not `is_whole`) a statistic on the way to it.

    What it depends on is found by a walk of the graph, which is put off until it is needed: mostly one thing that it
    reads has changed, or one number, and then that is it.
    """

    def __init__(self, changes: Changes, step: Step, name: str, node: int, *, is_whole: bool = True) -> None:
        self.changes, self.step, self.name, self.node, self.is_whole = changes, step, name, node, is_whole
        self.compiled, self.graph = changes.compiled, changes.compiled.graph
        self.then: StepHistory = changes.then.steps[changes.former[step.name]]
        self.now: StepHistory = changes.now.steps[step.name]
        self.read = read_by(step, self.compiled.results[step.name], name)

    @cached_property
    def within(self) -> Within:
        return within(self.compiled, self.read, self.node)

    @cached_property
    def reached(self) -> tuple[tuple[Source, str], ...]:
        """What it depends on of what the step reads."""
        return reached(self.compiled, self.read, self.within.ends)

    def causes(self) -> Causes:
        """Why it is another than in the last run, most specific first."""
        own = [*self._made_from(), *self._settings(), *self._versions()]
        if self.then.method != self.now.method:
            about = shown_path(self.changes.recipe, self.step, "merge_method")
            own.append(Reason("setting", f"{about} {self.then.method} -> {self.now.method}"))
        parameters = self._parameters()
        changed = [it for it in self.read if self._has_changed(it)]
        if not self.is_whole or len(changed) > 1 or (changed and (own or parameters)):
            changed = [it for it in changed if it in self.reached]
        files = [reason for it in changed for reason in self._files(it)]
        first = [it for it in files if it.kind != "digest"]
        last = [it for it in files if it.kind == "digest"]
        return Causes(tuple(dict.fromkeys([*parameters, *first, *own, *last])), self._upstream(changed))

    def _has_changed(self, read: tuple[Source, str]) -> bool:
        source, name = read
        if isinstance(source, StepReference):
            return bool(self.changes.of(source.name, name))
        return any(True for _ in self._files(read))

    def _upstream(self, changed: Sequence[tuple[Source, str]]) -> tuple[tuple[str, tuple[Reason, ...]], ...]:
        """The steps that have changed, with what happened there or further up."""
        found: dict[str, dict[Reason, None]] = {}
        for source, name in changed:
            if isinstance(source, StepReference):
                found.setdefault(source.name, {}).update(dict.fromkeys(_roots(self.changes.of(source.name, name))))
        return tuple((step, tuple(reasons)[:MOST_ROOTS]) for step, reasons in found.items())

    def _parameters(self) -> list[Reason]:
        """Those that resolve to other numbers. A statistic has only those of what it is taken of."""
        then, now = self.then.makings.get(self.name), self.now.makings.get(self.name)
        found = () if then is None or now is None else self.changes.compared(self.step, then, now)
        if self.is_whole or not found:
            return [reason for _, reason in found]
        labels = {label_of(source) for source, _ in self.reached}
        theirs = [reason for owner, reason in found if owner.partition(" #")[0] in labels]
        return theirs or [reason for owner, reason in found if not owner]

    def _files(self, read: tuple[Source, str]) -> Iterator[Reason]:
        source, name = read
        if isinstance(source, ModelReference):
            yield from self.changes.model(source).reasons(name)

    def otherwise(self) -> Reason:
        """What to say when nothing that a history knows has changed."""
        if self.name not in self.then.keys:
            return Reason("other", f"it is a new tensor of {self.step.name}")
        for source, name in self.reached:
            if isinstance(source, ModelReference) and self.changes.model(source).is_view(name):
                shown = shown_model(self.changes.recipe, source)
                return Reason("other", f"{shown} is read otherwise: its configuration changed, or an adapter's")
        return Reason("other", "it is computed otherwise than by the mergeflow of the last run")

    def _made_from(self) -> Iterator[Reason]:
        """Other models, layers or steps than before, or in another order."""
        then, now = self._reads()
        if then is None or then == now:
            return
        old, new = _settings_of(self.then, _STRUCTURE), _settings_of(self.now, _STRUCTURE)
        gone = [label for label, _ in then if label not in dict(now)]
        come = [label for label, _ in now if label not in dict(then)]
        if come and len(come) == len(gone):
            changed = [path for path in new if path in old and old[path] != new[path]]
            if changed:
                yield from self._changes_at(changed, old, new)
                return
        yield from (Reason("setting", f"{self._shown(label)} is new in {self.step.name}") for label in come)
        yield from (Reason("setting", f"{self._shown(label)} was left out of {self.step.name}") for label in gone)
        if not come and not gone:
            ranges = [
                path for path in {**new, **old} if path.endswith("layer_range") and old.get(path) != new.get(path)
            ]
            if ranges:
                yield from self._changes_at(ranges, old, new)
            elif [label for label, _ in then] != [label for label, _ in now]:
                yield Reason("setting", f"the models of {self.step.name} are in another order")
            else:
                yield Reason("setting", f"{self.step.name} makes it from other tensors")

    def _reads(self) -> tuple[Reading | None, Reading]:
        """What the value is made from, before (None: not at all) and now, by the names of now."""
        then = self.then.reads.get(self.name)
        now = self.now.reads[self.name]
        if then is None or not any(label.startswith(STEP) for label, _ in then):
            return then, now
        return tuple((self.changes.relabelled(label), name) for label, name in then), now

    def _shown(self, label: str) -> str:
        if label.startswith(STEP):
            return label.removeprefix(STEP)
        sources = {label_of(source): source for source in self.compiled.checkpoints}
        return shown_model(self.changes.recipe, sources[label]) if label in sources else label

    def _changes_at(self, paths: list[str], old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[Reason]:
        for path in paths:
            about = shown_path(self.changes.recipe, self.step, path)
            yield Reason("setting", f"{about} {old.get(path, UNSET)} -> {new.get(path, UNSET)}")

    def _settings(self) -> Iterator[Reason]:
        """Rounding, and the rows of embeddings."""
        then, now = self.then.makings.get(self.name), self.now.makings[self.name]
        if then is None:
            return
        old, new = self.then.settings, self.now.settings
        if then.rounded != now.rounded:
            yield from self._changes_at([it for it in ("dtype", "out_dtype") if old.get(it) != new.get(it)], old, new)
        if then.words != now.words:
            paths = [it for it in {**new, **old} if it.startswith(_WORDS) and old.get(it) != new.get(it)]
            yield from self._changes_at(paths, old, new)
            if not paths:
                yield Reason("setting", f"the vocabulary of a model of {self.step.name} changed")

    def _versions(self) -> Iterator[Reason]:
        """Other versions of the operations, another seed where random numbers are drawn."""
        versions, seeds = self.changes.versions, (self.changes.then.seed, self.changes.now.seed)
        if not versions and seeds[0] == seeds[1] and self.then.identity == self.now.identity:
            return
        views = [i for i in self.within.ends if self.graph[i].kind == "view"]
        ops = dict.fromkeys(self.graph[i].op for i in (*self.within.nodes, *sorted(views)))
        for op in ops:
            if op in versions:
                yield Reason("version", f"method {self.now.method} is now version {versions[op]} (operation {op})")
        if any(op.startswith("own_") for op in ops):
            yield from self._own_method()
        if seeds[0] != seeds[1] and any(op in OPS and OPS[op].random for op in ops):
            yield Reason("seed", f"seed {seeds[0]} -> {seeds[1]}")

    def _own_method(self) -> Iterator[Reason]:
        then, now = self.then.identity, self.now.identity
        if not then or then.get("name") != now.get("name"):
            return
        changed = [part for part in {**now, **then} if then.get(part) != now.get(part)]
        for part in changed:
            name = now["name"]
            said = f"is now version {now.get(part)}" if part == "version" else f"has another {part}"
            yield Reason("version", f"{name}'s code changed" if part == "code" else f"method {name} {said}")


def _roots(causes: Causes) -> tuple[Reason, ...]:
    """What happened to a value itself, and what happened further up."""
    found = dict.fromkeys(causes.own)
    for _, reasons in causes.upstream:
        found |= dict.fromkeys(reasons)
    return tuple(found)[:MOST_ROOTS]


def _settings_of(step: StepHistory, endings: tuple[str, ...]) -> dict[str, str]:
    return {path: text for path, text in step.settings.items() if path.endswith(endings)}
