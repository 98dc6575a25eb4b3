"""The inputs of a step with their embeddings and heads in the order of one vocabulary: views of row maps.

Which row comes from where is the rule of graph/row_maps.py; here it is applied to every vocabulary tensor. A model that
is tied gives its embedding for the head that another model has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

from mergeflow.dtypes import compute_dtype, promote
from mergeflow.errors import some
from mergeflow.graph.row_maps import Configured, Member, Merged, RowMap
from mergeflow.graph.values import MergedVocabulary, Result, Tensor
from mergeflow.graph.words import Shelf, Words
from mergeflow.methods.views.runs import PADDING
from mergeflow.models.tied import tied_name
from mergeflow.models.vocabulary import rows_of
from mergeflow.recipe.records import ModelToken, Source, TokenRow, Vocabulary

SHOWN = 5


@dataclass
class Reindexing:
    """The re-indexing of one step's inputs.

    Args:
        wanted: what the recipe says of the vocabulary.
        vocabulary: what was made of it.
        words: of every input.
    """

    shelf: Shelf
    wanted: Vocabulary
    vocabulary: MergedVocabulary
    inputs: Mapping[Source, Result]
    words: Mapping[Source, Words]
    rows: dict[object, Merged] = field(default_factory=dict)

    def reindexed(self) -> Mapping[Source, Result]:
        """The inputs, each with new vocabulary tensors, all of the same rows."""
        inputs, words = self.inputs, self.words
        names = dict.fromkeys(
            name for source, one in words.items() for name in inputs[source].tensors if name in one.names
        )
        made = {source: dict(result.tensors) for source, result in inputs.items()}
        for name in names:
            held = self._held(name)
            odd = [source for source, its_name in held.items() if its_name not in words[source].names]
            for source in odd:
                self.shelf.doubt(f"{name} has a row for each token in {next(iter(held))}, but not in {source}")
            if not odd:
                for source, tensor in self._new_tensors(name, held).items():
                    made[source][name] = tensor
        return {source: replace(result, tensors=made[source]) for source, result in inputs.items()}

    def _held(self, name: str) -> dict[Source, str]:
        """The models that have the tensor `name`, and under which name: a head that is tied has the embedding's."""
        inputs, words = self.inputs, self.words
        width = next(
            self.shelf.graph[result.tensors[name].node].shape[1:]
            for result in inputs.values()
            if name in result.tensors
        )
        found: dict[Source, str] = {}
        for source, result in inputs.items():
            if name in result.tensors:
                found[source] = name
            elif result.type == "weights":
                shape = (words[source].rows, *width)
                tied = tied_name(name, shape, self.shelf.shapes(result), self.shelf.config_of_donor(result))
                found |= {source: tied} if tied is not None else {}
        return found

    def _new_tensors(self, name: str, held: Mapping[Source, str]) -> dict[Source, Tensor]:
        """The tensors called `name` of the models that have it, in the order of the vocabulary."""
        inputs, words, vocabulary = self.inputs, self.words, self.vocabulary
        having = list(held)
        members = [*having, *self._outsiders(name, having)]
        results = [inputs.get(source) or self.shelf.find(source) for source in members]
        tensors = [
            result.tensors[held.get(source, name)]
            for source, result in zip(members, results, strict=True)
            if result is not None
        ]
        shapes = [self.shelf.graph[tensor.node].shape for tensor in tensors]
        if len({_width(shape) for shape in shapes}) != 1:
            return {}  # they do not fit, which is said where the shapes of all tensors are compared
        knowing = [words.get(source) or self.shelf.words(source) for source in members]
        merged = self._merged_rows(
            [
                Member(
                    rows_of(shape),
                    one.tokenizer.ids if one is not None else {},
                    result is not None and result.type == "delta",
                )
                for shape, one, result in zip(shapes, knowing, results, strict=True)
            ],
            len(having),
            self._configured(name, members),
            members.index(self.shelf.step.base) if self.shelf.step.base in having else None,
        )
        self._doubt_zeros(merged.nowhere())
        stored = reduce(promote, (tensor.stored for tensor in tensors[: len(having)]))
        return {
            source: Tensor(self._view(index, merged.row_maps[index], tensors, vocabulary.rows, merged.used), stored)
            for index, source in enumerate(having)
        }

    def _merged_rows(
        self,
        members: Sequence[Member],
        considered: int,
        configured: Mapping[str, Configured],
        base: int | None,
    ) -> Merged:
        """The rows of the tensors of one name; an embedding and its head nearly always have the same."""
        like = tuple((member.rows, id(member.ids), member.is_delta) for member in members)
        key = like, considered, tuple(configured.items()), base
        if key not in self.rows:
            ids, rows = self.vocabulary.tokenizer.ids, self.vocabulary.rows
            self.rows[key] = Merged(ids, rows, members, considered, configured, base)
        return self.rows[key]

    def _view(self, member: int, rows: RowMap, tensors: Sequence[Tensor], count: int, used: int) -> int:
        """The node of one model's new tensor: the tensor itself when nothing moves."""
        own = self.shelf.graph[tensors[member].node]
        if rows.is_identity(member, count) and rows_of(own.shape) == count:
            return own.id
        inputs = [tensors[index].node for index in rows.members]
        dtypes = [dtype for node in inputs if (dtype := self.shelf.graph[node].dtype) is not None]
        assert own.dtype is not None  # a tensor, never a statistic
        dtype = reduce(promote, dtypes) if dtypes else own.dtype
        parameters = {
            "runs": list(rows.runs),
            "means": [list(mean) for mean in rows.means],
            "tokens": used if PADDING in rows.runs[::3] else 0,
        }
        shape = (1, count) if _is_flat_row(own.shape) else (count, *own.shape[1:])
        return self.shelf.graph.view(
            "vocabulary", inputs, parameters, compute_dtype(dtype) if rows.is_computed else dtype, shape
        )

    def _outsiders(self, name: str, having: Sequence[Source]) -> list[Source]:
        """Models that `tokens` takes rows from and that are not merged."""
        named = [source for row in self.wanted.tokens.values() if (source := _model_of(row)) is not None]
        outsiders = [source for source in dict.fromkeys(named) if source not in having]
        results = {source: self.shelf.find(source) for source in outsiders}
        return [source for source, result in results.items() if result is not None and name in result.tensors]

    def _configured(self, name: str, members: Sequence[Source]) -> dict[str, Configured]:
        rows = self.wanted.tokens.items()
        return {token: self._configured_row(token, row, name, members) for token, row in rows}

    def _configured_row(self, token: str, row: TokenRow, name: str, members: Sequence[Source]) -> Configured:
        source = _model_of(row)
        if source is None:
            return Configured(None, row.force, is_default=row.source is None)
        path = f"{self.shelf.path}.tokens.{token}"
        words = self.shelf.words(source)
        if words is None or source not in members:
            what = "a tokenizer" if words is None else name
            self.shelf.doubt(f"{source} has no {what.removeprefix('a ')}, so no row can come from it", path)
            return Configured(is_default=True)
        wanted = row.source
        if isinstance(wanted, ModelToken) and wanted.token_id is not None:
            place: int | None = wanted.token_id
            shown = f"the id {wanted.token_id}"
        else:
            text = wanted.token if isinstance(wanted, ModelToken) and wanted.token is not None else token
            place, shown = words.tokenizer.ids.get(text), f"the token {text!r}"
        if place is None or place >= words.rows:
            self.shelf.doubt(f"{source} has no row for {shown}", path)
            return Configured(is_default=True)
        return Configured((members.index(source), place), row.force)

    def _doubt_zeros(self, tokens: Sequence[str]) -> None:
        if tokens:
            shown = some([repr(token) for token in tokens], SHOWN)
            self.shelf.doubt(f"no model has a row for {shown}: zeros are taken", severity="warning")


def _model_of(row: TokenRow) -> Source | None:
    """The model that a configured row comes from."""
    if isinstance(row.source, ModelToken):
        return row.source.model
    return None if row.source is None or isinstance(row.source, str) else row.source


def _width(shape: tuple[int, ...]) -> tuple[int, ...]:
    return () if _is_flat_row(shape) else shape[1:]


def _is_flat_row(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and shape[0] == 1
