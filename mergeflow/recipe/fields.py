"""The fields a recipe may have, in one table, and how the fields of a mapping are read.

The reader and the JSON schema are both made from this table, so that an editor completes what the reader accepts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mergeflow.recipe.findings import Findings
from mergeflow.recipe.nearest import did_you_mean, nearest, quoted
from mergeflow.recipe.nodes import Entry, ListNode, MapNode, Node, ScalarNode, is_null, join, kind_of
from mergeflow.recipe.records import Scalar
from mergeflow.recipe.settings import Kind, convert

NATIVE_FIELDS = {
    "mergeflow": "The version of the recipe's form: 1.",
    "seed": "Where random methods start from: an integer from 0. Default 0.",
    "models": "Names for checkpoints: a folder, or a hub id with an optional revision (org/model@revision).",
    "vars": "Values for ${name} anywhere below; --set name=value on the command line overrides them.",
    "sweep": "Variables with a list of values each: every combination is run, into a folder of its own. "
    "--set name=value,value does the same for any variable, --set name=value gives it one value.",
    "steps": "The merges, by name. A step's name stands wherever a model may stand.",
    "outputs": "The steps to write as models, and how. Default: the steps that no other step uses.",
}
MERGE_FIELDS = {
    "merge_method": "How the models are merged: one of `mergeflow methods`.",
    "models": "The models that are merged, in order, each with its own parameters.",
    "slices": "The layers of the result, in order: each slice is made from as many layers of one or more models.",
    "modules": "The parts of a model with layers of their own (a vision tower, a decoder), by name, each with its own "
    "models or slices.",
    "base_model": "The model the method takes for its base: what deltas are differences from.",
    "parameters": "Parameters of the method for the whole step; those of a model come first.",
    "dtype": "The number format of the step's result. Default: computed and kept in float32.",
    "out_dtype": "The number format in which the result is written.",
    "tokenizer": "The vocabulary of the result: embeddings and heads are merged token by token. Default: the base "
    "model's tokenizer is copied, and rows are merged by their numbers.",
    "tokenizer_source": "The short form of `tokenizer`: union, base, or a model.",
    "chat_template": "The chat template that is written: auto (the one most models have), a built-in name, or a "
    "template.",
}
DOCUMENT_FIELDS = {
    "name": "The name of this merge, for the other documents of the file. The final one has none.",
    **MERGE_FIELDS,
}


@dataclass(frozen=True, slots=True)
class OperationForm:
    """A step that is one method under its own name: ``sparsify: {delta: STEP, density: 0.5}``.

    `sources` are the fields that name what it reads: first its input, then (called ``base``) its base. Whatever else
    stands beside them is a parameter of the method of the same name. `rule` says why they must be there. Where
    `adapter` has a meaning, an adapter may stand in place of the input, and the base may be left out then.
    """

    meaning: str
    sources: Mapping[str, str]
    rule: str
    adapter: str = ""


OPERATIONS: Mapping[str, OperationForm] = {
    "task_vector": OperationForm(
        meaning="The difference of a model and its base: a delta, not a model.",
        sources={
            "model": "The model (or step) that was trained.",
            "base": "The model (or step) it was trained from.",
        },
        rule="a task vector is model minus base (or {adapter: PATH})",
        adapter="A low-rank adapter whose delta is taken alone: a folder or a hub id with an optional @revision, or "
        "{path, revision, weight}.",
    ),
    "sparsify": OperationForm(
        meaning="A delta of which only a share of the entries is kept.",
        sources={"delta": "The step whose delta is thinned out."},
        rule="it takes one delta",
    ),
    "scale": OperationForm(
        meaning="A delta multiplied by a number.",
        sources={"delta": "The step whose delta is scaled."},
        rule="it takes one delta",
    ),
    "low_rank": OperationForm(
        meaning="A delta reduced to its largest singular values.",
        sources={"delta": "The step whose delta is reduced."},
        rule="it takes one delta",
    ),
}
STEP_FIELDS = {
    **MERGE_FIELDS,
    **{name: form.meaning for name, form in OPERATIONS.items()},
    "cache": "What is kept for later runs: the step's statistics, and tensors that take long (auto), all its tensors "
    "(always) or nothing (never).",
}
INPUT_FIELDS = {
    "model": "A name of `models`, a step, a folder, or a hub id with an optional @revision.",
    "parameters": "Parameters of the method for this model alone.",
}
SLICE_FIELDS = {
    "sources": "The layers this slice is made from: as many of each model.",
    "base_model": "The base for the tensors of this slice, in place of the step's.",
    "parameters": "Parameters of the method for this slice; those of a source come first.",
    "residual_weight": "Without effect, as in mergekit.",
}
SOURCE_FIELDS = {
    "model": INPUT_FIELDS["model"],
    "layer_range": "The first layer and the one behind the last: [0, 8] are the first eight.",
    "parameters": INPUT_FIELDS["parameters"],
}
MODULE_FIELDS = {
    "models": "The models this module is merged from, in order, each with its own parameters.",
    "slices": "The layers of this module, in order.",
    "parameters": "Parameters of the method for this module; those of a slice come first.",
}
VOCABULARY_FIELDS = {
    "source": "union (the tokens of all models), base, or the model whose vocabulary is taken. Default: union.",
    "tokens": "Where the rows of single tokens come from, by the token's text.",
    "pad_to_multiple_of": "The number of rows is rounded up to a multiple of this.",
}
TOKEN_FIELDS = {
    "source": "A model that has the token, {kind: zero}, or {kind: model_token, model: ..., token: ...} (or token_id).",
    "force": "Whether models that have the token take this row too. Default: false.",
}
TOKEN_SOURCE_FIELDS = {
    "kind": "zero: a row of zeros; model_token: the row of a token of a model.",
    "model": "The model whose row is taken.",
    "token": "The text of the token whose row is taken.",
    "token_id": "The number of the row that is taken.",
}
REFERENCE_FIELDS = {
    "path": "A folder or a hub id, taken as it is: never a name of this recipe, no @ or + in it has a meaning.",
    "revision": "A branch, tag or commit of the hub.",
    "model": "A folder or a hub id with an optional @revision, or {path, revision}.",
    "lora": "A low-rank adapter that is added: a folder or a hub id with an optional @revision, or {path, revision}.",
    "adapters": "Several adapters that are added, each {path, revision, weight} or a text.",
    "override_architecture": "Not needed: the names of the tensors say what a model is made of.",
}
ADAPTER_FIELDS = {
    "path": "A folder or a hub id, taken as it is.",
    "revision": "A branch, tag or commit of the hub.",
    "weight": "What the adapter is multiplied by. Default: 1.",
}
OUTPUT_FIELDS = {
    "path": "The folder to write, relative to the recipe's folder. Default: given on the command line.",
    "dtype": "The number format of the written tensors. Default: that of the step.",
    "max_shard_size": "The most bytes in one file: a number, or a text such as 5GB. 0: one file. Default 5GB.",
    "tokenizer": "Where the tokenizer comes from. Default: the base model, or the first one.",
}
TOKENIZER_FIELDS = {"source": "The model whose tokenizer is written: a name of `models`, a folder or a hub id."}
CONDITION_FIELDS = {
    "value": "The value where the filter matches: a number, text or boolean, or a gradient over the layers.",
    "filter": "A part of the tensor names this value is for, taken literally. Default: every tensor.",
}


# Fields of a step that hold mappings, and have the looks of fields that hold lists.
MAPPINGS = ("modules",)


def read_fields(node: Node, known: Mapping[str, str], path: str, findings: Findings) -> dict[str, Entry]:
    """The fields of a mapping by name, those without a value left out.

    An unknown field is reported with the nearest name. In a native recipe it is then read as that one, so that
    the mistake hides no other; mergekit would not have looked at it, so in a mergekit file it is not read.
    """
    if not isinstance(node, MapNode):
        _expect("a mapping", node, path, findings)
        return {}
    written = {entry.key for entry in node.entries}
    fields: dict[str, Entry] = {}
    for entry in node.entries:
        name = entry.key
        here = join(path, name)
        if name not in known:
            guess = nearest(name, _that_hold(entry.node, known))
            _report_unknown(entry, guess, tuple(known), here, findings)
            if guess is None or findings.tolerant or guess in written or guess in fields:
                continue
            name = guess
        if not is_null(entry.node):
            fields[name] = entry
    return fields


def _that_hold(node: Node, known: Mapping[str, str]) -> tuple[str, ...]:
    """The fields that a value can be meant for: a list is never one of modules."""
    return tuple(name for name in known if name not in MAPPINGS or not isinstance(node, ListNode))


def _report_unknown(entry: Entry, guess: str | None, names: tuple[str, ...], path: str, findings: Findings) -> None:
    ignored = " is ignored, as in mergekit" if findings.tolerant else ""
    message = (
        f"unknown field {quoted(entry.key)}{ignored}{did_you_mean(entry.key, [guess] if guess else names, 'fields')}"
    )
    findings.ignored_by_mergekit(message, entry.key_position, path)


def read_named(node: Node, path: str, findings: Findings) -> tuple[Entry, ...]:
    """The entries of a mapping from names to values, in the order of the file."""
    if isinstance(node, MapNode):
        return node.entries
    if not is_null(node):
        _expect("a mapping from names to values", node, path, findings)
    return ()


def read_text_value(node: Node, path: str, findings: Findings) -> str | None:
    """A scalar as it was written; None, reported, when it is none."""
    if isinstance(node, ScalarNode) and node.value is not None:
        return node.text
    _expect("a text", node, path, findings)
    return None


def read_list(node: Node, path: str, findings: Findings) -> tuple[Node, ...]:
    """The items of a list; none, reported, when it is not one."""
    if isinstance(node, ListNode):
        return node.items
    _expect("a list", node, path, findings)
    return ()


def _expect(what: str, node: Node, path: str, findings: Findings) -> None:
    """Says what should have stood here, unless the value was reported already."""
    if isinstance(node, (ScalarNode, ListNode, MapNode)):
        findings.error(f"expected {what}, found {kind_of(node)}", node.position, path)


def read_converted(node: Node, kind: Kind) -> Scalar | None:
    """A scalar as a value of a kind; None, not reported, when it is none."""
    if not isinstance(node, ScalarNode) or node.value is None:
        return None
    try:
        return convert(node.value, kind)
    except ValueError:
        return None


def read_choice(node: Node, choices: tuple[str, ...], path: str, findings: Findings) -> str | None:
    """One of a few words; None, reported with the nearest one, when it is another."""
    text = read_text_value(node, path, findings)
    if text is None or text in choices:
        return text
    message = f"{quoted(text)} is not one of {', '.join(choices)}"
    guess = nearest(text, choices)
    findings.error(message + (f"; did you mean {quoted(guess)}?" if guess else ""), node.position, path)
    return None
