"""A tokenizer made from another: without the tokens that a model has no rows for, with tokens added behind the others.

What is cut away is cut from every place that would bring it back on loading: the vocabulary, the merges that make it
or use it, the added tokens, and in tokenizer_config.json the roles (``pad_token``) and lists that name it. What is
added is an added token: found in a text as it stands. Merges and scores of two vocabularies cannot be united, so a
token of the other model that is not an added token there is found only where its text stands literally.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from mergeflow.models.tokenizer import AddedToken, Tokenizer, model_of, model_type

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LISTS = ("additional_special_tokens", "extra_special_tokens")
_DECODER = "added_tokens_decoder"


def stripped(tokenizer: Tokenizer, rows: int) -> Tokenizer:
    """The tokenizer without the tokens whose ids are `rows` or more; itself when there are none."""
    if tokenizer.rows <= rows:
        return tokenizer
    ids = {token: number for token, number in tokenizer.ids.items() if number < rows}
    document = dict(tokenizer.document)
    document["model"] = _stripped_model(tokenizer.document, rows)
    document["added_tokens"] = [entry for entry in _added_entries(document) if entry.get("content") in ids]
    return replace(
        tokenizer,
        ids=ids,
        added={token: entry for token, entry in tokenizer.added.items() if token in ids},
        document=document,
        settings=_without_tokens(tokenizer.settings, ids),
    )


def settled(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer whose settings name none but its own tokens: a loader would add the others behind the last row."""
    return replace(tokenizer, settings=_without_tokens(tokenizer.settings, tokenizer.ids))


def with_tokens(tokenizer: Tokenizer, tokens: Sequence[AddedToken]) -> Tokenizer:
    """The tokenizer with these added behind its last id, in this order; those it has already are left as they are."""
    new: dict[str, AddedToken] = {}
    for token in tokens:
        if token.content not in tokenizer.ids:
            new.setdefault(token.content, token)
    return _listing(tokenizer, new, {content: number for number, content in enumerate(new, start=tokenizer.rows)})


def with_whole_tokens(tokenizer: Tokenizer, tokens: Sequence[AddedToken]) -> Tokenizer:
    """The tokenizer that finds these as they stand where its own vocabulary has them, under their ids there."""
    taken = {tokenizer.ids[content] for content in tokenizer.added}
    new: dict[str, AddedToken] = {}
    for token in tokens:
        if token.content in tokenizer.ids and tokenizer.ids[token.content] not in taken:
            new.setdefault(token.content, token)
    return _listing(tokenizer, new, {content: tokenizer.ids[content] for content in new})


def _listing(tokenizer: Tokenizer, new: Mapping[str, AddedToken], ids: Mapping[str, int]) -> Tokenizer:
    """The tokenizer with more added tokens, of these ids."""
    if not new:
        return tokenizer
    document = dict(tokenizer.document)
    listed = [{"id": ids[content], **_entry(token)} for content, token in new.items()]
    document["added_tokens"] = [*_added_entries(document), *listed]
    return replace(
        tokenizer,
        ids={**tokenizer.ids, **ids},
        added={**tokenizer.added, **new},
        document=document,
        settings=_with_tokens(tokenizer.settings, new, ids),
    )


def library_fault(tokenizer: Tokenizer) -> str | None:
    """Why the library `tokenizers` cannot load a tokenizer that was built; None when it can.

    Rust code that panics is no Exception in Python; its name is all that tells it.
    """
    from tokenizers import Tokenizer as Loaded

    try:
        Loaded.from_str(json.dumps(tokenizer.document))
    except Exception as error:
        return str(error) or type(error).__name__
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        return "the library gave up on it"
    return None


def roles(settings: Mapping[str, object]) -> dict[str, str]:
    """The tokens that have a role, by role; those without text are left out."""
    found = {role: _content(settings.get(role)) for role in ROLES}
    return {role: token for role, token in found.items() if token is not None}


def _stripped_model(document: Mapping[str, object], rows: int) -> dict[str, object]:
    model = dict(model_of(document))
    vocab = model.get("vocab")
    if isinstance(vocab, list):
        model["vocab"] = vocab[:rows]
        unknown = model.get("unk_id")
        if isinstance(unknown, int) and unknown >= rows:
            model["unk_id"] = None
        return model
    if not isinstance(vocab, dict):
        return model
    kept = {token: number for token, number in vocab.items() if number < rows}
    model["vocab"] = kept
    merges = model.get("merges")
    if model_type(document) == "BPE" and isinstance(merges, list):
        model["merges"] = [merge for merge in merges if _is_possible(merge, kept)]
    return model


def _is_possible(merge: object, vocab: Mapping[str, object]) -> bool:
    """Whether both parts of a merge (``"a b"`` or ``["a", "b"]``), and what it makes, are in the vocabulary."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        return False
    left, right = parts
    return left in vocab and right in vocab and left + right in vocab


def _without_tokens(settings: Mapping[str, object], ids: Mapping[str, int]) -> dict[str, object]:
    """tokenizer_config.json without what names a token that is not among `ids`."""

    def is_there(entry: object) -> bool:
        content = _content(entry)
        return content is None or content in ids

    result = {key: value for key, value in settings.items() if key not in ROLES or is_there(value)}
    for name in _LISTS:
        listed = result.get(name)
        if isinstance(listed, list):
            result[name] = [entry for entry in listed if is_there(entry)]
        elif isinstance(listed, dict):
            result[name] = {key: entry for key, entry in listed.items() if is_there(entry)}
    decoder = result.get(_DECODER)
    if isinstance(decoder, dict):
        result[_DECODER] = {number: entry for number, entry in decoder.items() if is_there(entry)}
    return result


def _with_tokens(
    settings: Mapping[str, object], new: Mapping[str, AddedToken], ids: Mapping[str, int]
) -> dict[str, object]:
    """tokenizer_config.json with new tokens in the lists that it has."""
    result = dict(settings)
    decoder = result.get(_DECODER)
    if isinstance(decoder, dict):
        result[_DECODER] = {**decoder, **{str(ids[content]): _entry(token) for content, token in new.items()}}
    special = [content for content, token in new.items() if token.special]
    name = next((name for name in _LISTS if isinstance(result.get(name), list)), None)
    listed = result.get(name) if name is not None else None
    if name is not None and isinstance(listed, list):
        result[name] = [*listed, *special]
    return result


def _added_entries(document: Mapping[str, object]) -> list[dict[str, object]]:
    listed = document.get("added_tokens")
    return [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []


def _entry(token: AddedToken) -> dict[str, object]:
    names = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    values = asdict(token)
    return {name: values[name] for name in names}


def _content(entry: object) -> str | None:
    """The text of a token in tokenizer_config.json: a text, or an object that holds it."""
    if isinstance(entry, Mapping):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None
