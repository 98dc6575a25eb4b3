"""A cache shared through a store: a folder of this machine first, then what others have put into the store.

    lookup     here, and what is not here in the store (by its lists alone)
    reading    from here; what is not here is fetched first, checked while it comes, and published by the usual rename
    writing    here, then into the store

The local tier is a cache like any other: its entries look the same, and everything that looks after a cache works on
it. Removing, there or with `discard`, never removes from the store, where others may need it.

**What comes from the store is data from strangers.** Before a byte of it is used: the document's seal (with the secret,
when ``$MERGEFLOW_CACHE_SECRET`` is set) and every field in it (`document`); the size of the chunks, against what the
document says, before they are fetched; their blake3, against the document's, before they are published. An entry that
fails is reported with its key and the store's URL, counts as missing from then on, and is replaced by what this run
computes. Without a secret this finds accidents and tampering with bytes; it cannot find a false value that was put
there whole and properly sealed, since then anybody who may write can seal.

**The store never stops a run.** While it is down the run does with the local tier: what it counted on is computed, what
it could not put there others compute again. Each is said once. Only one thing stops a run, before it starts: a store
that refuses to be read, because that is a mistake in the URL or the credentials.

Tensors are put there before the task that wrote them ends, so that a worker on another machine finds them; records,
which may be thousands, while the run goes on.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mergeflow.cache.document import TensorDocument, decode, sealed_with
from mergeflow.cache.entry import DOCUMENT_NAME, EntryInfo, OnDamage
from mergeflow.cache.folders import checked_key, delete
from mergeflow.cache.place import CachePlace
from mergeflow.cache.remote import REQUESTS_AT_A_TIME, Found, StoreDown, StoreRefuses
from mergeflow.cache.sharing import Sharing
from mergeflow.cache.store import Cache, log_damage
from mergeflow.cache.transfer import fetch_chunks, shareable
from mergeflow.dtypes import DType
from mergeflow.errors import CacheError, CorruptEntry, LostEntry

if TYPE_CHECKING:
    from mergeflow.cache.tensors import TensorReader, TensorWriter

# A record's values stand in its document. The largest of ours (Gram matrices of many models) take some kilobytes.
MOST_DOCUMENT_BYTES = 16 << 20
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True)  # no slots: methods call those of Cache by super(), which a class with slots loses
class TieredCache(Cache):
    """The cache in folder `root`, in front of a store that is shared. The same methods as any `Cache`.

    Args:
        sharing: this process's dealings with the store.
    """

    sharing: Sharing = field(kw_only=True)

    def __reduce__(self) -> tuple[Callable[[CachePlace], Cache], tuple[CachePlace]]:
        from mergeflow.cache.open import open_cache

        return open_cache, (CachePlace(self.root, self.sharing.remote.url),)

    def lookup(self, keys: Iterable[str], on_damage: OnDamage = log_damage) -> dict[str, EntryInfo]:
        """The entries among `keys` that are intact here, or that the store lists.

        Raises:
            ValueError: something is not a key.
            CacheError: the store refuses to be read.
        """
        wanted = set(keys)
        found = super().lookup(wanted, on_damage)
        missing = wanted.difference(found, self.sharing.damaged)
        if missing and self.sharing.is_readable:
            elsewhere = self._find(missing)
            found.update((key, EntryInfo(key, entry.kind, entry.nbytes)) for key, entry in elsewhere.items())
        return found

    def read_record(self, key: str) -> dict[str, object]:
        self._bring(key)
        return super().read_record(key)

    def write_record(self, key: str, record: Mapping[str, object], about: Mapping[str, object]) -> int:
        nbytes = super().write_record(key, record, about)
        self.sharing.later(lambda: self._share(key))
        return nbytes

    def create_tensor(self, key: str, dtype: DType, shape: Sequence[int], about: Mapping[str, object]) -> TensorWriter:
        return self._writer(key, dtype, shape, about, share=lambda: self._share(key))

    def open_tensor(self, key: str) -> TensorReader:
        self._bring(key)
        return super().open_tensor(key)

    def discard(self, key: str) -> None:
        """Removes the entry `key` here; the store's counts as missing until it is replaced by a new one."""
        super().discard(key)
        self.sharing.distrust(key)
        self.sharing.remote.forget()  # a run plans again: what its workers have put there meanwhile counts

    def check(self) -> None:
        self.sharing.remote.forget()
        if self.sharing.is_readable:
            self._find({"0" * 64})

    def fetch(self, keys: Iterable[str]) -> None:
        """Brings entries here, many at a time. What cannot be fetched is told by whoever reads it."""
        missing = [key for key in keys if not super(TieredCache, self).lookup([key], on_damage=_ignore)]
        if not missing or not self.sharing.is_readable:
            return
        with ThreadPoolExecutor(min(REQUESTS_AT_A_TIME, len(missing))) as pool:
            list(pool.map(self._try_to_bring, missing))

    def settle(self) -> None:
        self.sharing.settle()

    def warnings(self) -> tuple[str, ...]:
        return self.sharing.take_warnings()

    def _find(self, keys: set[str]) -> dict[str, Found]:
        sharing = self.sharing
        try:
            return sharing.remote.find(keys)
        except StoreDown as error:
            sharing.failed("this run does without it, and computes what only others have", error)
            return {}
        except StoreRefuses as error:
            raise CacheError(f"the cache {sharing.remote.url} cannot be used: {error}") from error

    def _try_to_bring(self, key: str) -> None:
        try:
            self._bring(key)
        except CorruptEntry:
            return

    def _bring(self, key: str) -> None:
        """Fetches the entry `key`, unless it is here.

        Raises:
            CorruptEntry: the store's is damaged. (When it has none, whoever reads tells.)
            LostEntry: the store does not answer.
        """
        with self.sharing.fetching(checked_key(key)):
            if super().lookup([key], on_damage=_ignore) or key in self.sharing.damaged:
                return
            if not self.sharing.is_readable:
                raise LostEntry(key, f"{self.sharing.remote.url} is not read any more")
            try:
                self._fetch(key)
            except StoreDown as error:
                self.sharing.failed("this run computes what it counted on", error)
                raise LostEntry(key, f"{self.sharing.remote.url}: {error}") from error
            except StoreRefuses as error:
                self.sharing.refused_reading(error)
                raise LostEntry(key, f"{self.sharing.remote.url}: {error}") from error
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                self.sharing.no_room(str(self.root))
                raise LostEntry(key, f"{self.root} has no room for it") from error
            except CorruptEntry as error:
                self.sharing.found_damaged(key)
                raise CorruptEntry(key, f"in {self.sharing.remote.url}, {error.reason}") from error

    def _fetch(self, key: str) -> None:
        remote = self.sharing.remote
        try:
            text = remote.read(_name(key, DOCUMENT_NAME), MOST_DOCUMENT_BYTES)
        except ValueError as error:
            raise CorruptEntry(key, f"zarr.json has {error}") from error
        if text is None:
            return
        document = decode(key, text, self.sharing.secret)
        if document is None:
            raise CorruptEntry(key, "zarr.json is of a format this version does not know")
        work = self.folders.new_work()
        try:
            if isinstance(document, TensorDocument) and document.layout.count:
                self._fetch_chunks(key, document, work)
            self._finish(work, key, sealed_with(text, None))
        except BaseException:
            delete(work)
            raise

    def _fetch_chunks(self, key: str, document: TensorDocument, work: str) -> None:
        layout = document.layout
        if layout.file_bytes > shutil.disk_usage(work).free:
            raise CorruptEntry(key, f"its {layout.file_bytes} bytes do not fit onto the disk of {self.root}")
        parts = self.sharing.remote.parts(_name(key, layout.file_name), layout.file_bytes)
        with self.create(f"{work}/{layout.file_name}") as file:
            fetch_chunks(key, document, parts, file)

    def _share(self, key: str) -> None:
        """Puts the entry `key`, which is here, into the store. That it cannot be done is said, and that is all."""
        sharing = self.sharing
        if not sharing.is_writable:
            return
        try:
            with shareable(self.folders.entry(key), key) as entry:
                if entry is None:
                    return
                if entry.chunks is not None:
                    sharing.remote.write(_name(key, entry.chunks_name), entry.chunks)
                sharing.remote.write(_name(key, DOCUMENT_NAME), sealed_with(entry.text, sharing.secret))
        except StoreDown as error:
            sharing.failed("this run goes on, and others will not find all that it computes", error)
        except StoreRefuses as error:
            sharing.refused_writing(error)
        else:
            sharing.replaced(key)
            sharing.remote.remember(key, Found("record" if entry.chunks is None else "tensor", len(entry.text)))


def _ignore(error: CorruptEntry) -> None:
    """For an entry that is damaged here: it is fetched anew."""


def _name(key: str, file: str) -> str:
    return f"v1/{key[:2]}/{key}/{file}"
