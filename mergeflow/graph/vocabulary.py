"""One vocabulary for a step: what its tokens are, and its inputs with their embeddings and heads in its order.

    models ──> tokenizers ──> output vocabulary ──> row map per model ──> view `vocabulary` of each vocabulary tensor

The vocabulary is that of the base (without the tokens that it has no rows for), of a model (which need not be merged),
or the union: the base's, then the tokens that only others have, behind the base's last id: first the plain ones, then
the added ones, the models in listed order and each by its own ids. Then what `tokens` names and nobody has.

After this, embeddings and heads are tensors like any other, of equal shapes, and the method merges them. A tensor of
the vocabulary keeps the rows behind the last token when the model whose vocabulary it is has such rows, unless
`pad_to_multiple_of` says how many there shall be. Which tensors these are is told by models/vocabulary.py, which row
comes from where by graph/row_maps.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from mergeflow.graph.check import Finding
from mergeflow.graph.nodes import Graph
from mergeflow.graph.reindex import Reindexing
from mergeflow.graph.values import MergedVocabulary, OutputTensor, Result
from mergeflow.graph.words import Shelf, Words
from mergeflow.models.chat_templates import BUILT_IN, chosen_template, template_fault
from mergeflow.models.records import Checkpoint
from mergeflow.models.tokenizer import AddedToken, Tokenizer
from mergeflow.models.tokenizer_building import library_fault, roles, settled, stripped, with_tokens, with_whole_tokens
from mergeflow.models.vocabulary import vocabulary_rows
from mergeflow.recipe.records import ModelReference, Source, Step, Vocabulary


@dataclass(frozen=True, slots=True)
class OneVocabulary:
    """The inputs of a step with one vocabulary, that vocabulary and the chat template; None: as `origin` has it.

    `origin` is the input whose configuration the result has: the step's base, or its first.
    """

    inputs: Mapping[Source, Result]
    origin: Result
    vocabulary: MergedVocabulary | None
    chat_template: str | None
    doubts: tuple[Finding, ...]

    @property
    def fails(self) -> bool:
        return any(doubt.severity == "error" for doubt in self.doubts)

    def onto(self, result: Result) -> Result:
        """A step's result with its vocabulary; what the step says nothing of comes from where its config comes from."""
        return replace(
            result,
            vocabulary=self.vocabulary or self.origin.vocabulary,
            chat_template=self.chat_template or self.origin.chat_template,
        )


def one_vocabulary(
    graph: Graph,
    step: Step,
    inputs: Mapping[Source, Result],
    find: Callable[[Source], Result | None],
    checkpoints: Mapping[ModelReference, Checkpoint],
) -> OneVocabulary:
    """Bring the inputs of a step to one vocabulary, if the step asks for it.

    Args:
        inputs: what the step merges, in listed order.
        find: what another model or step stands for: a vocabulary, or a row, may be that of one that is not merged.
        checkpoints: with their tokenizers, of the models that need them.
    """
    shelf = Shelf(graph, step, find, checkpoints)
    template = _template(shelf, inputs)
    made: Mapping[Source, Result] = inputs
    vocabulary = None
    if step.vocabulary is not None:
        vocabulary, made = _merged(shelf, step.vocabulary, inputs)
    else:
        _doubt_other_orders(shelf, inputs)
    origin = inputs[step.base if step.base is not None else next(iter(inputs))]
    return OneVocabulary(made, origin, vocabulary, template, tuple(shelf.doubts))


def tokenizer_misfit(model: Checkpoint, tensors: Sequence[OutputTensor]) -> str | None:
    """Why the tokenizer of a model cannot be that of an output of these tensors; None when it can, or has none."""
    rows = vocabulary_rows({tensor.name: tensor.shape for tensor in tensors}, model.config)
    if model.tokenizer is None or rows is None or model.tokenizer.rows <= rows:
        return None
    beyond = next(token for token, number in model.tokenizer.ids.items() if number >= rows)
    return (
        f"the tokenizer of {model.label} has ids up to {model.tokenizer.rows - 1} ({beyond!r} is the first without a "
        f"row), and the embedding has {rows} rows: 'tokenizer: {{source: ...}}' in the step merges token by token"
    )


def _template(shelf: Shelf, inputs: Mapping[Source, Result]) -> str | None:
    """The chat template that the step asks for; None when it asks for none, or none is found."""
    wish = shelf.step.chat_template
    if not wish:
        return None
    text = chosen_template(wish, [shelf.template_of(result) for result in inputs.values()])
    if text is None:
        shelf.doubt("none of the models has a chat template, so the output has none", "chat_template", "warning")
    elif wish != "auto" and wish not in BUILT_IN and (fault := template_fault(text)) is not None:
        shelf.doubt(f"not a chat template: {fault}", "chat_template")
    return text


def _merged(
    shelf: Shelf, wanted: Vocabulary, inputs: Mapping[Source, Result]
) -> tuple[MergedVocabulary | None, Mapping[Source, Result]]:
    """The vocabulary of the step, and the inputs in its order."""
    base = shelf.step.base if shelf.step.base is not None else next(iter(inputs))
    words = shelf.words_of_all(inputs, base)
    source = _source(shelf, wanted, base, words)
    if source is None or any(doubt.severity == "error" for doubt in shelf.doubts):
        return None, inputs
    tokenizer = _tokenizer(shelf, wanted, source, words, base)
    fault = library_fault(tokenizer)
    if fault is not None:
        shelf.doubt(f"the tokenizer of {source.label} is damaged: {fault}")
        return None, inputs
    rows = _rows(wanted, tokenizer, source)
    _doubt_settings(shelf, words)
    vocabulary = _counted(tokenizer, rows, shelf.step.name, words, base)
    return vocabulary, Reindexing(shelf, wanted, vocabulary, inputs, words).reindexed()


def _doubt_other_orders(shelf: Shelf, inputs: Mapping[Source, Result]) -> None:
    """Warn of embeddings that fit row by row but are known to mean other tokens."""
    merged = {source: result.vocabulary for source, result in inputs.items() if result.vocabulary is not None}
    for source, vocabulary in merged.items():
        for other, result in inputs.items():
            own = shelf.tokenizer_of(result)
            if other != source and own is not None and own.ids != vocabulary.tokenizer.ids:
                shelf.doubt(
                    f"{source} and {other} have other tokens in their rows, and are merged row by row: "
                    "'tokenizer: {source: union}' merges them token by token",
                    "",
                    "warning",
                )
                return


def _source(shelf: Shelf, wanted: Vocabulary, base: Source, words: Mapping[Source, Words]) -> Words | None:
    """The model whose vocabulary is taken, or added to."""
    named = base if isinstance(wanted.source, str) else wanted.source
    found = words.get(named) or shelf.words(named)
    if found is None and words:
        shelf.doubt(f"{named} has no tokenizer whose vocabulary could be taken")
    return found


def _tokenizer(
    shelf: Shelf, wanted: Vocabulary, source: Words, words: Mapping[Source, Words], base: Source
) -> Tokenizer:
    """The tokenizer of the result."""
    tokenizer = source.tokenizer
    if isinstance(wanted.source, str):
        tokenizer = stripped(tokenizer, source.rows)
    if wanted.source == "union":
        others = [one for name, one in words.items() if name != base]
        added = [*_added(others)]
        tokenizer = with_whole_tokens(with_tokens(tokenizer, [*_plain(others), *added]), added)
    tokenizer = settled(with_tokens(tokenizer, [AddedToken(token) for token in wanted.tokens]))
    for role, token in roles(source.tokenizer.settings).items():
        if token not in tokenizer.ids:
            shelf.doubt(f"the {role} of {source.label}, {token!r}, has no row: left out", severity="warning")
    return tokenizer


def _rows(wanted: Vocabulary, tokenizer: Tokenizer, source: Words) -> int:
    """How many rows the embeddings of the result have."""
    multiple = wanted.pad_to_multiple_of
    return max(tokenizer.rows, source.rows) if multiple is None else -(-tokenizer.rows // multiple) * multiple


def _doubt_settings(shelf: Shelf, words: Mapping[Source, Words]) -> None:
    """Warn of tokens that are special in one model and not in another: the first model's word counts."""
    first: dict[str, tuple[str, bool]] = {}
    for one in words.values():
        for content, token in one.tokenizer.added.items():
            label, special = first.setdefault(content, (one.label, token.special))
            if special != token.special:
                yes, no = (label, one.label) if special else (one.label, label)
                shelf.doubt(
                    f"the token {content!r} is special in {yes} but not in {no}: as in {label} here",
                    severity="warning",
                )


def _plain(others: Sequence[Words]) -> Iterator[AddedToken]:
    """The tokens that are no added tokens of the models that have them."""
    added = {token.content for token in _added(others)}
    for one in others:
        for token, _ in one.known():
            if token not in one.tokenizer.added and token not in added:
                yield AddedToken(token)


def _added(others: Sequence[Words]) -> Iterator[AddedToken]:
    for one in others:
        yield from (one.tokenizer.added[token] for token, _ in one.known() if token in one.tokenizer.added)


def _counted(
    tokenizer: Tokenizer, rows: int, step: str, words: Mapping[Source, Words], base: Source
) -> MergedVocabulary:
    """The vocabulary with the numbers that a report gives of it."""
    tokens = tokenizer.ids.keys()
    having = {source: {token for token, _ in one.known()} for source, one in words.items()}
    shared = set(tokens).intersection(*having.values())
    return MergedVocabulary(
        step=step,
        tokenizer=tokenizer,
        rows=rows,
        shared=len(shared),
        added=len(tokens - having[base]),
        dropped=len(set().union(*having.values()) - tokens),
    )
