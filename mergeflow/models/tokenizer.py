"""A model's tokenizer, read from its files: which token is which row of the embedding.

    tokenizer.json           the vocabulary (text -> id), added tokens, and how text is cut (format of `tokenizers`)
    tokenizer_config.json    roles (bos_token ...), settings, in older models the chat template
    chat_template.jinja      the chat template of newer models

Only JSON is read: no code of the model and no library of its authors runs, and nothing in the files is believed before
it is checked. Ids are those the file states; a token of the vocabulary that is also an added token has one id. An
added token may take over the id of a token of the vocabulary (fine-tunes rename reserved tokens so): both then name
the same row. Two added tokens with one id are an error, as are two of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mergeflow.errors import CheckpointError
from mergeflow.models.strict_json import parse_object

TOKENIZER_NAME = "tokenizer.json"
SETTINGS_NAME = "tokenizer_config.json"
TEMPLATE_NAME = "chat_template.jinja"
NAMES = (TOKENIZER_NAME, SETTINGS_NAME, TEMPLATE_NAME)
# The largest published are some 40 MB and 300 000 tokens.
MAX_BYTES = 200_000_000
MAX_TOKENS = 4_000_000
MODEL_TYPES = ("BPE", "Unigram", "WordPiece", "WordLevel")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_WITHOUT_JSON = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is found in a text before the text is cut: its text, and how it is looked for."""

    content: str
    special: bool = False
    normalized: bool = True
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A tokenizer as its files state it.

    Args:
        label: the model it is from, for messages.
        ids: every token, added ones included, and its id; in order of the ids.
        added: the added tokens by their text.
        document: the whole tokenizer.json.
        settings: the whole tokenizer_config.json, without the chat template.
        chat_template: the template for chats; None when there is none.
        templates: further templates by their names (``tool_use``).
    """

    label: str
    ids: Mapping[str, int]
    added: Mapping[str, AddedToken]
    document: Mapping[str, object]
    settings: Mapping[str, object] = field(default_factory=dict)
    chat_template: str | None = None
    templates: Mapping[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """How many rows an embedding must have for every token to have one: the largest id, and one."""
        return max(self.ids.values(), default=-1) + 1


Read = Callable[[str], bytes]


def read_tokenizer(files: Sequence[str], read: Read, label: str) -> Tokenizer | None:
    """The tokenizer of a model; None when it has none.

    Args:
        files: the names of the model's files.
        read: the bytes of one of them.
        label: the model as the user wrote it.

    Raises:
        CheckpointError: the tokenizer is damaged, or is there only in a form that is no tokenizer.json.
    """
    if TOKENIZER_NAME not in files:
        other = next((name for name in _WITHOUT_JSON if name in files), None)
        if other is None:
            return None
        raise CheckpointError(
            f"{label}: its tokenizer is only there as {other}: convert it to {TOKENIZER_NAME} "
            "(load it in transformers with AutoTokenizer, then save_pretrained)"
        )
    document = _object(read(TOKENIZER_NAME), f"{label}: {TOKENIZER_NAME}")
    settings: dict[str, object] = {}
    if SETTINGS_NAME in files:
        settings = _object(read(SETTINGS_NAME), f"{label}: {SETTINGS_NAME}")
    jinja = _text(read(TEMPLATE_NAME), f"{label}: {TEMPLATE_NAME}") if TEMPLATE_NAME in files else None
    return parse_tokenizer(document, settings, jinja, label)


def read_chat_template(files: Sequence[str], read: Read, label: str) -> str | None:
    """The chat template of a model alone, whatever its tokenizer is; None when it has none. Arguments: the same."""
    if TEMPLATE_NAME in files:
        return _text(read(TEMPLATE_NAME), f"{label}: {TEMPLATE_NAME}")
    if SETTINGS_NAME not in files:
        return None
    return _templates(_object(read(SETTINGS_NAME), f"{label}: {SETTINGS_NAME}").get("chat_template")).get("default")


def parse_tokenizer(
    document: Mapping[str, object], settings: Mapping[str, object], jinja: str | None, label: str
) -> Tokenizer:
    """The tokenizer that parsed files state.

    Args:
        jinja: the text of chat_template.jinja.

    Raises:
        CheckpointError: they are no tokenizer.
    """
    where = f"{label}: {TOKENIZER_NAME}"
    ids = _vocabulary(document, where)
    added = _added(document, where)
    for token, number in added:
        if ids.setdefault(token.content, number) != number:
            raise CheckpointError(
                f"{where}: the token {token.content!r} has two ids, {ids[token.content]} and {number}"
            )
    if not ids:
        raise CheckpointError(f"{where}: there is not one token in it")
    templates = _templates(settings.get("chat_template"))
    template = jinja if jinja is not None else templates.pop("default", None)
    return Tokenizer(
        label=label,
        ids=dict(sorted(ids.items(), key=lambda pair: (pair[1], pair[0]))),
        added={token.content: token for token, _ in added},
        document=document,
        settings={key: value for key, value in settings.items() if key != "chat_template"},
        chat_template=template,
        templates=templates,
    )


def model_of(document: Mapping[str, object]) -> Mapping[str, object]:
    """The part of a tokenizer.json that says how text is cut; empty when there is none."""
    model = document.get("model")
    return model if isinstance(model, dict) else {}


def model_type(document: Mapping[str, object]) -> str:
    """Which of `MODEL_TYPES` a tokenizer.json is of; old files leave it out. Empty: of none of them."""
    model = model_of(document)
    stated = model.get("type")
    if isinstance(stated, str):
        return stated if stated in MODEL_TYPES else ""
    if isinstance(model.get("vocab"), list):
        return "Unigram"
    if "merges" in model:
        return "BPE"
    return "WordPiece" if "continuing_subword_prefix" in model else "WordLevel" if "vocab" in model else ""


def _vocabulary(document: Mapping[str, object], where: str) -> dict[str, int]:
    """The tokens of the model itself."""
    kind, vocab = model_type(document), model_of(document).get("vocab")
    if not kind:
        raise CheckpointError(f"{where}: its model is none of {', '.join(MODEL_TYPES)}")
    if kind == "Unigram":
        pairs = _scored(vocab, where)
    elif isinstance(vocab, dict):
        pairs = list(vocab.items())
    else:
        raise CheckpointError(f"{where}: its vocabulary is not a mapping of tokens to ids")
    if len(pairs) > MAX_TOKENS:
        raise CheckpointError(f"{where}: {len(pairs)} tokens, which no vocabulary has")
    found: dict[str, int] = {}
    owners: dict[int, str] = {}
    for token, number in pairs:
        checked = _id(token, number, where)
        if checked in owners:
            raise CheckpointError(f"{where}: the tokens {owners[checked]!r} and {token!r} have the same id, {checked}")
        owners[checked] = token
        found[token] = checked
    return found


def _scored(vocab: object, where: str) -> list[tuple[str, object]]:
    """A Unigram vocabulary: a list of [token, score], in order of the ids."""
    pairs: dict[str, object] = {}
    for number, entry in enumerate(vocab if isinstance(vocab, list) else []):
        is_pair = isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)
        if not is_pair or not isinstance(entry[1], int | float) or isinstance(entry[1], bool):
            raise CheckpointError(f"{where}: entry {number} of its vocabulary is not a token and a score")
        pairs.setdefault(entry[0], number)  # a repeated token is known by its first id
    if not isinstance(vocab, list):
        raise CheckpointError(f"{where}: its vocabulary is not a list of tokens and scores")
    return list(pairs.items())


def _added(document: Mapping[str, object], where: str) -> list[tuple[AddedToken, int]]:
    listed = document.get("added_tokens") or []
    if not isinstance(listed, list) or len(listed) > MAX_TOKENS:
        raise CheckpointError(f"{where}: its added_tokens are not a list")
    found: list[tuple[AddedToken, int]] = []
    owners: dict[int, str] = {}
    contents: set[str] = set()
    for entry in listed:
        if not isinstance(entry, dict):
            raise CheckpointError(f"{where}: an entry of its added_tokens is not an object")
        content = entry.get("content")
        number = _id(content, entry.get("id"), where)
        assert isinstance(content, str)  # _id has seen to it
        flags = {name: entry.get(name, name == "normalized") for name in _FLAGS}
        if not all(isinstance(flag, bool) for flag in flags.values()):
            raise CheckpointError(f"{where}: the added token {content!r} has a flag that is not true or false")
        if number in owners:
            raise CheckpointError(
                f"{where}: the added tokens {owners[number]!r} and {content!r} have the same id, {number}"
            )
        if content in contents:
            raise CheckpointError(f"{where}: the added token {content!r} is listed twice")
        owners[number] = content
        contents.add(content)
        found.append((AddedToken(content, **flags), number))
    return found


def _id(token: object, number: object, where: str) -> int:
    if not isinstance(token, str):
        raise CheckpointError(f"{where}: a token is not a text")
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < MAX_TOKENS:
        return number
    raise CheckpointError(f"{where}: the token {_short(token)} has no id between 0 and {MAX_TOKENS}")


def _short(token: str) -> str:
    return repr(token if len(token) <= 40 else token[:40] + "...")


def _templates(stated: object) -> dict[str, str]:
    """The templates of a tokenizer_config.json by name: one text, or a list (older: a mapping) of named ones."""
    if isinstance(stated, str):
        return {"default": stated}
    if isinstance(stated, dict):
        return {name: text for name, text in stated.items() if isinstance(text, str)}
    named = [entry for entry in stated if isinstance(entry, dict)] if isinstance(stated, list) else []
    return {
        name: text
        for entry in named
        if isinstance(name := entry.get("name"), str) and isinstance(text := entry.get("template"), str)
    }


def _object(text: bytes, where: str) -> dict[str, object]:
    if len(text) > MAX_BYTES:
        raise CheckpointError(f"{where}: larger than {MAX_BYTES // 1_000_000} MB, which no such file is")
    return parse_object(text, where, unique=False)


def _text(text: bytes, where: str) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{where}: not UTF-8 text (byte {error.start})") from error
