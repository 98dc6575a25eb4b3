"""The tokenizer files of an output: written when a vocabulary was merged, copied but for the template when one was set.

A merged vocabulary is written as transformers 5 writes a tokenizer: tokenizer.json, tokenizer_config.json, and the chat
template in chat_template.jinja, which every reader prefers to the one inside tokenizer_config.json. A tokenizer class
that is code of the model is not run here and could not know the merged vocabulary, so the generic class is named.

Tokens may have other ids than in the donor. config.json and generation_config.json name tokens by id
(``eos_token_id``), so these follow their tokens: to the id of the same text, else to the token that has the role in
the merged tokenizer. What neither gives stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from mergeflow.errors import CheckpointError
from mergeflow.models.strict_json import parse_object, read_object
from mergeflow.models.tokenizer import MAX_BYTES, SETTINGS_NAME, TEMPLATE_NAME, TOKENIZER_NAME, Tokenizer
from mergeflow.models.tokenizer_building import roles
from mergeflow.output.files import NewFile
from mergeflow.output.text import json_text, text_bytes

GENERATION_NAME = "generation_config.json"
GENERIC_CLASS = "PreTrainedTokenizerFast"
_OTHER_TEMPLATES = "additional_chat_templates"
_HOLDS_IDS = re.compile(r"(?:\w+_)?token_(?:id|ids|index)")
_TEMPLATE_FILES = (TEMPLATE_NAME, "chat_template.json")
_FILE_NAME = re.compile(r"[\w-]{1,64}")


def tokenizer_files(tokenizer: Tokenizer, chat_template: str | None) -> list[NewFile]:
    """The files of a merged tokenizer.

    Args:
        chat_template: in place of the tokenizer's own.
    """
    settings = dict(tokenizer.settings)
    if settings.pop("auto_map", None) is not None:
        settings["tokenizer_class"] = GENERIC_CLASS
    files = [
        NewFile(TOKENIZER_NAME, _json(tokenizer.document)),
        NewFile(SETTINGS_NAME, _json(settings)),
    ]
    template = chat_template if chat_template is not None else tokenizer.chat_template
    if template is not None:
        files.append(NewFile(TEMPLATE_NAME, text_bytes(template)))
    named = {name: text for name, text in tokenizer.templates.items() if _FILE_NAME.fullmatch(name)}
    files += [NewFile(f"{_OTHER_TEMPLATES}/{name}.jinja", text_bytes(text)) for name, text in sorted(named.items())]
    return files


def with_chat_template(files: Sequence[NewFile], template: str) -> list[NewFile]:
    """The copied files of a model, with this chat template in place of the one they have."""
    kept = [file for file in files if file.path not in _TEMPLATE_FILES]
    settings = next((file for file in kept if file.path == SETTINGS_NAME), None)
    if settings is not None:
        stated = _read(settings)
        if stated is not None and "chat_template" in stated:
            kept.remove(settings)
            plain = {key: value for key, value in stated.items() if key != "chat_template"}
            kept.append(NewFile(SETTINGS_NAME, _json(plain)))
    return [*kept, NewFile(TEMPLATE_NAME, text_bytes(template))]


def with_generation_ids(files: Sequence[NewFile], before: Tokenizer | None, after: Tokenizer) -> list[NewFile]:
    """The copied files of a model, generation_config.json naming the same tokens by their ids in `after`."""
    result = list(files)
    for index, file in enumerate(files):
        stated = _read(file) if file.path == GENERATION_NAME else None
        if stated is not None:
            moved = with_token_ids(stated, before, after)
            if moved != stated:
                result[index] = NewFile(GENERATION_NAME, _json(moved))
    return result


def with_token_ids(config: Mapping[str, object], before: Tokenizer | None, after: Tokenizer) -> dict[str, object]:
    """A configuration, nested ones included, that names the same tokens by their ids in another tokenizer.

    Args:
        before: the tokenizer whose ids it states; None when it is not known, and nothing is changed.
    """
    if before is None or before.ids == after.ids:
        return dict(config)
    texts = {number: token for token, number in before.ids.items()}
    texts |= {before.ids[token]: token for token in before.added}
    return _moved(config, texts, after.ids, roles(after.settings))


def _moved(
    config: Mapping[str, object], texts: Mapping[int, str], ids: Mapping[str, int], named: Mapping[str, str]
) -> dict[str, object]:
    def follow(key: str, number: object) -> object:
        if not isinstance(number, int) or isinstance(number, bool) or number not in texts:
            return number
        role = named.get(key.removesuffix("_id"), "")
        return ids.get(texts[number], ids.get(role, number))

    result: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            result[key] = _moved(value, texts, ids, named)
        elif _HOLDS_IDS.fullmatch(key):
            result[key] = [follow(key, it) for it in value] if isinstance(value, list) else follow(key, value)
        else:
            result[key] = value
    return result


def _read(file: NewFile) -> dict[str, object] | None:
    """The JSON object in a file that is copied; None when it is none, and is better copied as it is."""
    try:
        if isinstance(file.content, bytes):
            return parse_object(file.content, file.path, unique=False)
        return read_object(file.content, MAX_BYTES, unique=False)
    except CheckpointError:
        return None


def _json(value: Mapping[str, object]) -> bytes:
    return text_bytes(json_text(value))
