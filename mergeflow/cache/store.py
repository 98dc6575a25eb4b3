"""The cache: from a key to a tensor or a small record, shared by every process that is given the same folder.

A key says everything about a value (see `graph/keys.py`), so entries are never changed and never stale: they are there
or not. Each rule has its home: how an entry looks in `document`, `values` and `layout`; how it comes and goes safely in
`folders`; what counts as intact in `entry`; the bytes of a tensor in `tensors`.

Looking up and reading or writing records imports neither numpy nor zarr nor torch.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from mergeflow.cache.document import (
    Document,
    RecordDocument,
    TensorDocument,
    encode_record,
    encode_tensor,
)
from mergeflow.cache.entry import DOCUMENT_NAME, EntryInfo, OnDamage, intact, is_intact, read_document
from mergeflow.cache.folders import Folders, checked_key, delete
from mergeflow.cache.layout import CHUNK_BYTES, Layout, chunk_shape
from mergeflow.dtypes import DType
from mergeflow.errors import CorruptEntry

if TYPE_CHECKING:
    from mergeflow.cache.tensors import TensorReader, TensorWriter

# From so many keys of one folder on it is listed first: on a network disk each miss would be a round trip.
_LIST_FROM = 8
# Blocks at least this long go straight to the file, shorter ones are collected.
_FILE_BUFFER_BYTES = 1 << 16


def create_file(path: str) -> BinaryIO:
    """Creates the file `path`, which must not exist, for writing."""
    return open(path, "xb", buffering=_FILE_BUFFER_BYTES)


def log_damage(error: CorruptEntry) -> None:
    """Warns of a damaged entry in the log ``mergeflow.cache``."""
    logging.getLogger("mergeflow.cache").warning("%s; it counts as a miss", error)


@dataclass(frozen=True, slots=True)
class Cache:
    """The cache in folder `root`. Costs nothing to make, can be pickled, and makes no folder before it is written to.

    Safe with any number of threads and processes. A value that is not there, or that another process removes at the
    same moment, is a miss in `lookup` and a CorruptEntry when read.

    Args:
        root: its folder, existing or not. Everything lies in `root`/v1.
        create: how files are created; a test passes one whose disk is full.
        chunk_bytes: the most a chunk of a new tensor takes. What is there already is read whatever its chunks.
    """

    root: Path
    create: Callable[[str], BinaryIO] = create_file
    chunk_bytes: int = CHUNK_BYTES

    @property
    def folders(self) -> Folders:
        return Folders(self.root)

    def lookup(self, keys: Iterable[str], on_damage: OnDamage = log_damage) -> dict[str, EntryInfo]:
        """The intact entries among `keys`, without reading tensors.

        Args:
            on_damage: told of each entry that is there but damaged. Nothing is removed.

        Raises:
            ValueError: something is not a key.
        """
        found: dict[str, EntryInfo] = {}
        groups: dict[str, set[str]] = defaultdict(set)
        for key in keys:
            groups[checked_key(key)[:2]].add(key)
        folders = self.folders
        for prefix, group in groups.items():
            present = group if len(group) < _LIST_FROM else group.intersection(folders.names(prefix))
            found.update((info.key, info) for info in intact(folders, present, on_damage))
        return found

    def read_record(self, key: str) -> dict[str, object]:
        """The record `key`, equal to what was written bit for bit (tuples come back as lists).

        Raises:
            CorruptEntry: it is not there, damaged, or a tensor.
        """
        document = self._document(key)
        if not isinstance(document, RecordDocument):
            raise CorruptEntry(key, "it is a tensor where a record was expected")
        return document.record

    def write_record(self, key: str, record: Mapping[str, object], about: Mapping[str, object]) -> int:
        """Publishes a small record, and returns its size in bytes. When the key exists, the first one stays.

        Args:
            record: numbers, text, bytes, None, and lists and mappings of them.
            about: what people should know: ``{"op": ..., "version": ..., "step": ...}``.

        Raises:
            TypeError: the record holds something else.
            CacheError: the cache folder cannot be used.
            OSError: the disk is full or failed; nothing of the entry is left.
        """
        text = encode_record(checked_key(key), record, about)
        work = self.folders.new_work()
        try:
            self._finish(work, key, text)
        except BaseException:
            delete(work)
            raise
        return len(text)

    def create_tensor(self, key: str, dtype: DType, shape: Sequence[int], about: Mapping[str, object]) -> TensorWriter:
        """A writer for the tensor `key`; nothing is visible until its `publish`.

        Args:
            shape: any number of dimensions, zeros allowed.
            about: what people should know: ``{"op": ..., "version": ..., "step": ...}``.

        Raises:
            CacheError: the cache folder cannot be used.
            OSError: the disk is full or failed; nothing of the entry is left.
        """
        return self._writer(key, dtype, shape, about)

    def open_tensor(self, key: str) -> TensorReader:
        """A reader for the tensor `key`. It holds a file open: close it, or use `with`.

        Raises:
            CorruptEntry: it is not there, damaged or incomplete, or a record.
        """
        from mergeflow.cache.tensors import TensorReader

        document = self._document(key)
        if not isinstance(document, TensorDocument):
            raise CorruptEntry(key, "it is a record where a tensor was expected")
        return TensorReader(key, document, self.folders.entry(key))

    def discard(self, key: str) -> None:
        """Removes the entry `key` in one step, intact or not; nothing happens when it is not there."""
        self.folders.discard(self.folders.entry(key))

    def sweep(self) -> int:
        """Deletes what killed processes left behind, and returns how many pieces. Safe while others write."""
        return self.folders.sweep()

    def check(self) -> None:
        """Asks whether the cache can be used, before a run relies on it. A folder says so when it is written to.

        Raises:
            CacheError: it cannot.
        """

    def fetch(self, keys: Iterable[str]) -> None:
        """Brings entries that lie elsewhere here, many at a time, before they are read. Here they lie already."""

    def settle(self) -> None:
        """Waits until what was written is also where others see it. Here it is once it is published."""

    def warnings(self) -> tuple[str, ...]:
        """What went wrong elsewhere since this was last asked, and stopped nothing. Here there is no elsewhere."""
        return ()

    def _writer(
        self,
        key: str,
        dtype: DType,
        shape: Sequence[int],
        about: Mapping[str, object],
        share: Callable[[], None] | None = None,
    ) -> TensorWriter:
        """A writer for the tensor `key`.

        Args:
            share: called once it is published. A tensor that is shared has the digest of its chunks in its document.
        """
        from mergeflow.cache.tensors import Digesting, TensorWriter

        layout = Layout(tuple(shape), chunk_shape(shape, dtype.itemsize, self.chunk_bytes), dtype.itemsize)
        text = encode_tensor(checked_key(key), dtype, layout, about)
        work = self.folders.new_work()
        try:
            # A tensor without elements has no chunks, and no file.
            file = self.create(f"{work}/{layout.file_name}") if layout.count else io.BytesIO()
        except BaseException:
            delete(work)
            raise
        digesting = Digesting(file) if share is not None else None

        def publish() -> int:
            final = encode_tensor(key, dtype, layout, about, digesting.hexdigest()) if digesting is not None else text
            self._finish(work, key, final)
            if share is not None:
                share()
            return layout.file_bytes + len(final)

        return TensorWriter(layout, digesting or file, publish, drop=lambda: delete(work))

    def _finish(self, work: str, key: str, text: bytes) -> None:
        """Writes the document into the finished folder `work`, and publishes it."""
        with self.create(f"{work}/{DOCUMENT_NAME}") as file:
            file.write(text)
        folders = self.folders
        folders.publish(work, key, is_intact=lambda: is_intact(folders.entry(key), key))

    def _document(self, key: str) -> Document:
        folder = self.folders.entry(key)
        found = read_document(folder, key)
        if found is None:
            raise CorruptEntry(key, "it is not there, or of a format this version does not know")
        # The folder's time says when it was last used. Not worth failing for where we may not write.
        with contextlib.suppress(OSError):
            os.utime(folder)
        return found[0]
