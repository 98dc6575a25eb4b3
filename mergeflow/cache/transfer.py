"""The bytes of an entry on their way between this machine and a store: checked as they come, complete as they go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, BinaryIO

from blake3 import blake3

from mergeflow.cache.document import TensorDocument, decode, encode_tensor
from mergeflow.cache.entry import DOCUMENT_NAME
from mergeflow.errors import CorruptEntry


@dataclass(frozen=True, slots=True)
class Shareable:
    """An entry as it is put into a store.

    Args:
        text: its document, with the plain seal; a tensor's has the digest of its chunks.
        chunks: the open file of a tensor's chunks, and its name; None for a record.
    """

    text: bytes
    chunks: IO[bytes] | None = None
    chunks_name: str = ""


@contextmanager
def shareable(folder: str, key: str) -> Iterator[Shareable | None]:
    """The entry `key` that lies in `folder`, for as long as it is held open.

    None when there is nothing to share: it was removed, is damaged, or is a tensor without elements, which is as
    quickly computed, and which a store would list as a record.
    """
    try:
        with open(f"{folder}/{DOCUMENT_NAME}", "rb") as file:
            text = file.read()
        document = decode(key, text)
        if not isinstance(document, TensorDocument):
            yield Shareable(text) if document is not None else None
            return
        layout = document.layout
        if layout.count == 0:
            yield None
            return
        chunks = open(f"{folder}/{layout.file_name}", "rb")  # noqa: SIM115  (closed below)
    except (FileNotFoundError, CorruptEntry):
        yield None
        return
    with chunks:
        if document.digest is None:  # written when nobody thought of sharing it
            text = encode_tensor(key, document.dtype, layout, document.about, _digest(chunks))
        yield Shareable(text, chunks, layout.file_name)


def fetch_chunks(key: str, document: TensorDocument, parts: Iterable[memoryview], file: BinaryIO) -> None:
    """Writes the chunks of the tensor `key`, as a store gives them, into `file`.

    Raises:
        CorruptEntry: they are not those that `document` was written for. What is in `file` is of no use then.
        OSError: the disk is full or failed.
    """
    if document.digest is None:
        raise CorruptEntry(key, "zarr.json has no digest of its chunks")
    found = blake3()
    try:
        for part in parts:
            found.update(part)
            file.write(part)
    except ValueError as error:
        raise CorruptEntry(key, str(error)) from error
    if found.hexdigest() != document.digest:
        raise CorruptEntry(key, "the bytes of its chunks are not those of their digest")


def _digest(file: BinaryIO) -> str:
    found = blake3()
    while part := file.read(1 << 20):
        found.update(part)
    file.seek(0)
    return found.hexdigest()
