"""What the models of a step know of words: their tokenizers, and the rows and names of their vocabulary tensors.

Whatever is wrong or doubtful is noted here, with the field of the step that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from mergeflow.errors import Severity
from mergeflow.graph.check import Finding
from mergeflow.graph.nodes import Graph
from mergeflow.graph.values import Result
from mergeflow.models.records import Checkpoint
from mergeflow.models.tokenizer import Tokenizer
from mergeflow.models.vocabulary import vocabulary_rows, vocabulary_tensors
from mergeflow.recipe.records import ModelReference, Source, Step


@dataclass(frozen=True, slots=True)
class Words:
    """What a model knows of words: its tokenizer, and the rows and names of its vocabulary tensors."""

    label: str
    tokenizer: Tokenizer
    rows: int
    names: frozenset[str]

    def known(self) -> Iterator[tuple[str, int]]:
        """Its tokens that have a row, by id."""
        return ((token, number) for token, number in self.tokenizer.ids.items() if number < self.rows)


@dataclass
class Shelf:
    """The words of every model that a step names, looked up once, and what was found wrong on the way."""

    graph: Graph
    step: Step
    find: Callable[[Source], Result | None]
    checkpoints: Mapping[ModelReference, Checkpoint]
    doubts: list[Finding] = field(default_factory=list)
    known: dict[Source, Words | None] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The field of the step that says which vocabulary."""
        return "tokenizer_source" if "tokenizer_source" in self.step.positions else "tokenizer"

    def doubt(self, message: str, path: str | None = None, severity: Severity = "error") -> None:
        """Note what is wrong, at the step's vocabulary when no other field is at fault."""
        doubt = Finding(self.path if path is None else path, message, severity)
        if doubt not in self.doubts:
            self.doubts.append(doubt)

    def tokenizer_of(self, result: Result) -> Tokenizer | None:
        """The tokenizer of a model or of a step's result, when it was read."""
        if result.vocabulary is not None:
            return result.vocabulary.tokenizer
        checkpoint = self.checkpoints.get(result.donor)
        return checkpoint.tokenizer if checkpoint is not None else None

    def template_of(self, result: Result) -> str | None:
        """Its chat template."""
        if result.chat_template is not None:
            return result.chat_template
        tokenizer = self.tokenizer_of(result)
        if tokenizer is not None and tokenizer.chat_template is not None:
            return tokenizer.chat_template
        checkpoint = self.checkpoints.get(result.donor)
        return checkpoint.chat_template if checkpoint is not None else None

    def words_of_all(self, inputs: Mapping[Source, Result], base: Source) -> dict[Source, Words]:
        """What every merged model knows. One without a tokenizer is taken to have the base's."""
        origin = self.words(base)
        if origin is None:
            path = "base_model" if self.step.base is not None else None
            self.doubt(f"{base} has no tokenizer, so there is no vocabulary to merge by", path)
            return {}
        found: dict[Source, Words] = {}
        for source, result in inputs.items():
            words = self.words(source)
            if words is None:
                shapes = self.shapes(result)
                rows = vocabulary_rows(shapes, self._config(result)) or 0
                names = frozenset(vocabulary_tensors(shapes, {"vocab_size": rows}))
                words = Words(result.label, origin.tokenizer, rows, names)
                has_all = rows >= min(origin.rows, origin.tokenizer.rows)
                severity: Severity = "warning" if has_all else "error"
                assumed = "it is taken to have the tokens of" if has_all else f"{rows} rows are too few for those of"
                self.doubt(f"{source} has no tokenizer: {assumed} {base}", severity=severity)
            found[source] = words
        return found

    def words(self, source: Source) -> Words | None:
        """What a model or a step's result knows; None when it has no tokenizer."""
        if source not in self.known:
            result = self.find(source)
            tokenizer = self.tokenizer_of(result) if result is not None else None
            self.known[source] = None
            if result is not None and tokenizer is not None:
                shapes = self.shapes(result)
                rows = vocabulary_rows(shapes, self._config(result))
                names = frozenset(vocabulary_tensors(shapes, {"vocab_size": rows}))
                if rows is None:
                    self.doubt(f"no tensor of {source} looks like an embedding of tokens", path=self.path)
                self.known[source] = Words(result.label, tokenizer, rows or 0, names)
        return self.known[source]

    def shapes(self, result: Result) -> dict[str, tuple[int, ...]]:
        """The shapes of its tensors by name."""
        return {name: self.graph[tensor.node].shape for name, tensor in result.tensors.items()}

    def _config(self, result: Result) -> Mapping[str, object]:
        if result.vocabulary is not None:
            return {"vocab_size": result.vocabulary.rows}
        return self.config_of_donor(result)

    def config_of_donor(self, result: Result) -> Mapping[str, object]:
        """The config.json that belongs to it."""
        checkpoint = self.checkpoints.get(result.donor)
        return checkpoint.config if checkpoint is not None else {}
