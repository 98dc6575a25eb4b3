"""Two small real tasks whose data needs no download.

    docs        a sentence of documentation -> the part of Python's standard library it is from
                (the docstrings of the library this interpreter runs with)
    languages   a word -> the language it is of
                (stopwords-iso, as shipped by the PyPI package `stopwordsiso`)

An example belongs to the held-out part when its checksum says so: the parts do not depend on order or chance. Words
are held out by their beginnings, so that no held-out word has an inflected form among those trained on.
"""

from __future__ import annotations

import ast
import re
import sysconfig
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

LIBRARIES = (
    "asyncio",
    "_pydecimal",
    "email",
    "http",
    "importlib",
    "logging",
    "mailbox",
    "multiprocessing",
    "tarfile",
    "unittest",
    "urllib",
    "xml",
)
LANGUAGES = ("de", "fi", "fr", "id", "it", "tr")

HELD_OUT_PART = 5  # one in five
STEM_LETTERS = 5
SHORTEST_WORD = 4
SHORTEST_SENTENCE = 4  # words
LONGEST_SENTENCE = 200  # characters


@dataclass(frozen=True, slots=True)
class Example:
    """One text and the number of its label."""

    text: str
    label: int


@dataclass(frozen=True, slots=True)
class Task:
    """A labelled set of texts, in two parts that share nothing."""

    name: str
    question: str
    labels: tuple[str, ...]
    train: tuple[Example, ...]
    held_out: tuple[Example, ...]


def docs_task() -> Task:
    """Which part of the standard library does this sentence describe?"""
    root = Path(sysconfig.get_path("stdlib"))
    found = {library: tuple(dict.fromkeys(library_sentences(root, library))) for library in LIBRARIES}
    # What stands in two libraries tells nothing.
    counts = Counter(sentence for sentences in found.values() for sentence in sentences)
    examples = [
        Example(sentence, label)
        for label, library in enumerate(LIBRARIES)
        for sentence in found[library]
        if counts[sentence] == 1
    ]
    question = "which part of Python's standard library is this sentence about?"
    return split("docs", question, LIBRARIES, examples, key=lambda text: text)


def library_sentences(root: Path, library: str) -> Iterator[str]:
    """The first sentence of every docstring of a module or package of the standard library."""
    folder = root / library
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [root / f"{library}.py"]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                sentence = first_sentence(ast.get_docstring(node) or "")
                if len(sentence.split()) >= SHORTEST_SENTENCE and len(sentence) <= LONGEST_SENTENCE:
                    yield sentence


def first_sentence(docstring: str) -> str:
    """A docstring's first sentence, on one line."""
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    return re.split(r"(?<=[.!?])\s", paragraph)[0]


def languages_task() -> Task:
    """Which language is this word of?"""
    import stopwordsiso

    words = {
        language: {without_accents(word.lower()) for word in stopwordsiso.stopwords(language)}
        for language in stopwordsiso.langs()
    }
    # What is a word of two languages tells nothing.
    counts = Counter(word for found in words.values() for word in found)
    examples = [
        Example(word, label)
        for label, language in enumerate(LANGUAGES)
        for word in sorted(words[language])
        if word.isalpha() and len(word) >= SHORTEST_WORD and counts[word] == 1
    ]
    question = "which language is this word of?"
    return split("languages", question, LANGUAGES, examples, key=lambda text: text[:STEM_LETTERS])


def without_accents(word: str) -> str:
    """The bare letters, as the encoder's tokenizer sees them: an accent must not give the language away."""
    return "".join(letter for letter in unicodedata.normalize("NFD", word) if not unicodedata.combining(letter))


def split(
    name: str, question: str, labels: tuple[str, ...], examples: Iterable[Example], key: Callable[[str], str]
) -> Task:
    """A task whose held-out part is one fifth of the values of `key`, chosen by checksum."""
    parts: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        held_out = zlib.crc32(key(example.text).encode()) % HELD_OUT_PART == 0
        parts[held_out].append(example)
    return Task(name, question, labels, tuple(parts[0]), tuple(parts[1]))
