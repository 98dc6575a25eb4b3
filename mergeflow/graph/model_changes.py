"""Which tensors of a model's files have changed since the last run, file by file.

A tensor is known by its name and digest, not by its file: a model that was cut into other shards has not changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from mergeflow.errors import counted
from mergeflow.graph.history import UNKNOWN, FileHistory, History, file_of, shown_file
from mergeflow.graph.reasons import Reason
from mergeflow.graph.values import Compiled
from mergeflow.models.records import Checkpoint, TensorView
from mergeflow.recipe.records import ModelReference, Recipe

Files = Mapping[str, FileHistory]


@dataclass(frozen=True)
class ModelChanges:
    """One model.

    Args:
        labels: what each file is called, by its path.
        changed: the tensors of each file that are not as they were; empty for a model that the last run had not.
        unknown: files with tensors that have no digest yet, and what is said of each.
    """

    checkpoint: Checkpoint
    files: Files
    labels: Mapping[str, str]
    changed: Mapping[str, frozenset[str]]
    unknown: Mapping[str, str]
    _said: dict[str, Reason] = field(default_factory=dict)

    @classmethod
    def between(
        cls, recipe: Recipe, compiled: Compiled, source: ModelReference, then: History, now: History
    ) -> ModelChanges:
        """The changes of one model from one history to another."""
        checkpoint, files, before = compiled.checkpoints[source], now.models[str(source)], then.models.get(str(source))
        paths = {file_of(it): it for tensor in checkpoint.tensors.values() for it in tensor.sources()}
        return cls(
            checkpoint=checkpoint,
            files=files,
            labels={path: shown_file(recipe, source, checkpoint, path) for path in paths},
            changed={} if before is None else _changed(before, files),
            unknown={
                label: _unknown_text(label, file, None if before is None else before.get(label))
                for label, file in files.items()
                if UNKNOWN in file.digests.values()
            },
        )

    def is_view(self, name: str) -> bool:
        """Whether a tensor is made from several, or from one in another form."""
        return isinstance(self.checkpoint.tensors[name], TensorView)

    def reasons(self, name: str) -> Iterator[Reason]:
        """What happened to the files that hold a tensor of the model, as far as it concerns this tensor."""
        for source in self.checkpoint.tensors[name].sources():
            label = self.labels[file_of(source)]
            if self.files[label].digests[source.name] == UNKNOWN:
                yield Reason("digest", self.unknown[label])
            elif source.name in self.changed.get(label, ()):
                yield self._changed_file(label)

    def _changed_file(self, label: str) -> Reason:
        if label not in self._said:
            changed, total = len(self.changed[label]), len(self.files[label].digests)
            self._said[label] = Reason("file", f"{label} changed: {changed} of {counted(total, 'tensor')}")
        return self._said[label]


def _changed(before: Files, now: Files) -> dict[str, frozenset[str]]:
    anywhere: dict[str, set[str]] = {}
    for file in before.values():
        for name, digest in file.digests.items():
            anywhere.setdefault(name, set()).add(digest)
    return {
        label: frozenset(
            name
            for name, digest in file.digests.items()
            if digest != UNKNOWN and {digest, UNKNOWN}.isdisjoint(_digests_before(before, anywhere, label, name))
        )
        for label, file in now.items()
    }


def _digests_before(before: Files, anywhere: Mapping[str, set[str]], label: str, name: str) -> set[str]:
    """What a tensor was: in the file of this name; where that had none of its name, in any file of the model."""
    if label in before and name in before[label].digests:
        return {before[label].digests[name]}
    return anywhere.get(name, set())


def _unknown_text(label: str, file: FileHistory, before: FileHistory | None) -> str:
    if before is not None and (before.size, before.mtime_ns) != (file.size, file.mtime_ns):
        return f"{label} changed, and is not hashed yet"
    return f"{label} is not hashed yet"
