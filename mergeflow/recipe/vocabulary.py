"""The vocabulary of a step's result, and its chat template, as mergekit writes them.

    tokenizer_source: union                 the short form: union, base, or a model
    tokenizer:
      source: union                         the same; union when left out
      pad_to_multiple_of: 64
      tokens:
        <|im_start|>: {source: org/chat}                  the row that this model has of it
        <|tool|>: {source: {kind: zero}, force: true}     zeros, also in models that have the token
        <|new|>: {source: {kind: model_token, model: org/chat, token: <|im_end|>}}
    chat_template: auto                     or a built-in name, or a template

``union`` and ``base`` are those words before they are models (``./base`` is a folder); in a native recipe, a name of
the recipe comes first.
"""

from __future__ import annotations

from typing import Literal

from mergeflow.recipe.fields import (
    TOKEN_FIELDS,
    TOKEN_SOURCE_FIELDS,
    VOCABULARY_FIELDS,
    read_choice,
    read_converted,
    read_fields,
    read_named,
    read_text_value,
)
from mergeflow.recipe.findings import Findings
from mergeflow.recipe.made_of import StepPlace
from mergeflow.recipe.nearest import nearest, quoted
from mergeflow.recipe.nodes import BrokenNode, Entry, MapNode, Node, ScalarNode, is_empty, is_null, join, shown
from mergeflow.recipe.records import ModelToken, Source, TokenRow, Vocabulary

BUILT_VOCABULARIES = ("union", "base")
TOKEN_KINDS = ("zero", "model_token")
BUILT_IN_TEMPLATES = ("alpaca", "chatml", "exaone", "llama3", "mistral")
# mergekit's bounds of what may be a template: it is refused when it is shorter, or holds no brace.
SHORTEST_TEMPLATE = 20
# No vocabulary has more tokens; a row more would be a mistake.
LARGEST_MULTIPLE = 1_000_000
WORDS = Literal["union", "base"]


def read_vocabulary(fields: dict[str, Entry], place: StepPlace, findings: Findings) -> tuple[Vocabulary | None, bool]:
    """What `tokenizer` or `tokenizer_source` say, and whether each model they name could be read."""
    short = fields.get("tokenizer_source")
    if short is not None and is_empty(short.node):
        short = None
    if "tokenizer" in fields:
        path = join(place.path, "tokenizer")
        if short is not None:
            message = (
                "'tokenizer' and 'tokenizer_source' exclude each other: the short form is 'tokenizer: {source: ...}'"
            )
            findings.error(message, short.key_position, join(place.path, "tokenizer_source"))
        vocabulary = _read_tokenizer(fields["tokenizer"].node, path, place, findings)
        return vocabulary, vocabulary is not None
    if short is None:
        return None, True
    source = _read_source(short.node, join(place.path, "tokenizer_source"), place, findings)
    if source is None:
        return None, False
    return Vocabulary(source, position=short.node.position), True


def _read_tokenizer(node: Node, path: str, place: StepPlace, findings: Findings) -> Vocabulary | None:
    if isinstance(node, ScalarNode) and node.value is not None:
        findings.error(f"expected a mapping: write {{source: {node.text}}}", node.position, path)
        return None
    fields = read_fields(node, VOCABULARY_FIELDS, path, findings)
    if not isinstance(node, MapNode):
        return None
    source: WORDS | Source | None = "union"
    if "source" in fields:
        source = _read_source(fields["source"].node, join(path, "source"), place, findings)
    tokens = _read_tokens(fields, path, place, findings)
    multiple = _read_multiple(fields, path, findings)
    if source is None or tokens is None:
        return None
    return Vocabulary(source, tokens, multiple, node.position)


def _read_source(node: Node, path: str, place: StepPlace, findings: Findings) -> WORDS | Source | None:
    if isinstance(node, ScalarNode):
        is_name = not findings.tolerant and place.names is not None and node.text in place.names
        match node.text:
            case "union" | "base" as word if not is_name:
                return word
    return place.source(node, path, findings)


def _read_multiple(fields: dict[str, Entry], path: str, findings: Findings) -> int | None:
    if "pad_to_multiple_of" not in fields:
        return None
    node = fields["pad_to_multiple_of"].node
    number = read_converted(node, "int")
    if isinstance(number, int) and 0 <= number <= LARGEST_MULTIPLE:
        return number or None
    if not isinstance(node, BrokenNode):
        message = f"{shown(node)} is not what rows can be padded to: an integer from 1 to {LARGEST_MULTIPLE}"
        findings.error(message, node.position, join(path, "pad_to_multiple_of"))
    return None


def _read_tokens(
    fields: dict[str, Entry], path: str, place: StepPlace, findings: Findings
) -> dict[str, TokenRow] | None:
    """The rows of `tokens`; None when one of them names a model that cannot be read."""
    if "tokens" not in fields:
        return {}
    here = join(path, "tokens")
    rows: dict[str, TokenRow] = {}
    whole = True
    for entry in read_named(fields["tokens"].node, here, findings):
        row = _read_row(entry, join(here, entry.key), place, findings)
        whole = whole and row is not None
        if row is not None:
            rows[entry.key] = row
    return rows if whole else None


def _read_row(entry: Entry, path: str, place: StepPlace, findings: Findings) -> TokenRow | None:
    if not entry.key:
        findings.error("a token is a text: this one is empty", entry.key_position, path)
        return None
    if is_null(entry.node):
        return TokenRow(position=entry.key_position)
    if isinstance(entry.node, ScalarNode):
        message = f"expected a mapping: write {{source: {entry.node.text}}}"
        findings.error(message, entry.node.position, path)
        return None
    fields = read_fields(entry.node, TOKEN_FIELDS, path, findings)
    if not isinstance(entry.node, MapNode):
        return None
    force = _read_force(fields, path, findings)
    if "source" not in fields:
        return TokenRow(None, force, entry.key_position)
    source = _read_row_source(fields["source"].node, join(path, "source"), place, findings)
    return None if source is None else TokenRow(source, force, entry.key_position)


def _read_force(fields: dict[str, Entry], path: str, findings: Findings) -> bool:
    if "force" not in fields:
        return False
    node = fields["force"].node
    force = read_converted(node, "bool")
    if force is None and not isinstance(node, BrokenNode):
        findings.error(f"{shown(node)} is not true or false", node.position, join(path, "force"))
    return bool(force)


def _read_row_source(
    node: Node, path: str, place: StepPlace, findings: Findings
) -> Source | ModelToken | Literal["zero"] | None:
    if not isinstance(node, MapNode):
        return place.source(node, path, findings)
    names = {entry.key for entry in node.entries}
    if "kind" not in names and names.isdisjoint(("token", "token_id")):
        return place.source(node, path, findings)
    fields = read_fields(node, TOKEN_SOURCE_FIELDS, path, findings)
    if "kind" not in fields:
        findings.error("'kind: model_token' is missing beside the token", node.position, path)
        return None
    kind = read_choice(fields["kind"].node, TOKEN_KINDS, join(path, "kind"), findings)
    if kind == "zero":
        return "zero"
    return _read_model_token(node, fields, path, place, findings) if kind is not None else None


def _read_model_token(
    node: MapNode, fields: dict[str, Entry], path: str, place: StepPlace, findings: Findings
) -> ModelToken | None:
    given = [name for name in ("token", "token_id") if name in fields]
    if len(given) != 1:
        what = "both are given" if given else "neither is"
        findings.error(f"a model_token has a 'token' or a 'token_id': {what}", node.position, path)
    if "model" not in fields:
        findings.error("'model' is missing: a model_token is the row of a token of a model", node.position, path)
        return None
    model = place.source(fields["model"].node, join(path, "model"), findings)
    if model is None or len(given) != 1:
        return None
    (name,) = given
    named = fields[name].node
    if name == "token":
        token = read_text_value(named, join(path, name), findings)
        return None if token is None else ModelToken(model, token)
    number = read_converted(named, "int")
    if isinstance(number, int) and number >= 0:
        return ModelToken(model, token_id=number)
    if not isinstance(named, BrokenNode):
        findings.error(f"{shown(named)} is not a token's number", named.position, join(path, name))
    return None


def read_chat_template(fields: dict[str, Entry], path: str, findings: Findings) -> str | None:
    """The name or the text of the template; None when there is none, or, reported, when it cannot be one."""
    if "chat_template" not in fields or is_empty(fields["chat_template"].node):
        return None
    node, here = fields["chat_template"].node, join(path, "chat_template")
    text = read_text_value(node, here, findings)
    if text is None or text == "auto" or text in BUILT_IN_TEMPLATES:
        return text
    if len(text) >= SHORTEST_TEMPLATE and "{" in text:
        return text
    guess = nearest(text, ("auto", *BUILT_IN_TEMPLATES))
    hint = f"did you mean {quoted(guess)}?" if guess else f"the names are auto, {', '.join(BUILT_IN_TEMPLATES)}"
    findings.error(f"{quoted(text)} is neither a chat template nor the name of one; {hint}", node.position, here)
    return None
