"""The store that a shared cache lies in: which entries it has, their bytes, and what it refuses.

    <prefix>/v1/ab/ab12.../c.0.0        a tensor's chunks, put first
    <prefix>/v1/ab/ab12.../zarr.json    put last: an entry is there only when it is whole

**Requests are what costs**: one takes 50 ms where a local look takes 50 us. So keys are looked up by listing, many
lists at a time: the keys that share two digits by one list of that folder, a thousand names for each request. A folder
of a very large store would take more requests than there are keys to look for: it is given up after as many, and its
keys are asked for one by one. So n keys never take more than 2n requests, and a plan of 10,000 nodes against a store
of 100,000 entries takes 256, in eight rounds. Answers hold for half a minute, and not from one run to the next.

The names that a store lists are strangers' words: only those count that are exactly what we would have written for a
key that was asked for. Nothing is read beyond the size that was agreed on, and a tensor in parts, so that memory
stays bounded.

**What is wrong with a store** is one of two things: it *refuses* us (no such bucket, no rights, no credentials), which
the user must mend, or it is *down*, which passes: after that nothing is asked of it for a minute.

Credentials, region and endpoint come from the environment, as obstore reads it (``AWS_ACCESS_KEY_ID``,
``AWS_ENDPOINT_URL``, ``GOOGLE_APPLICATION_CREDENTIALS``, ``AZURE_STORAGE_ACCOUNT_NAME``, ...).
"""

from __future__ import annotations

import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import IO, TYPE_CHECKING

from mergeflow.cache.document import EntryKind
from mergeflow.cache.entry import DOCUMENT_NAME
from mergeflow.cache.folders import checked_key
from mergeflow.errors import CacheError, MergeflowError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

REQUESTS_AT_A_TIME = 32
PART_BYTES = 8 << 20
_PARTS_AT_A_TIME = 3  # of one upload
_NAMES_PER_REQUEST = 1000
_ANSWERS_HOLD_SECONDS = 30.0
_LEFT_ALONE_SECONDS = 60.0

_CHUNKS = re.compile(r"c(\.0)*")
_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|specified bucket does not exist", re.IGNORECASE)
# Where a virtual machine in the cloud asks for credentials, which is the last thing tried.
_METADATA = re.compile(r"169\.254\.(169\.254|170\.2)|metadata\.google\.internal|/latest/(api/token|meta-data)")
_DENIED = re.compile(r"40[13] (Forbidden|Unauthorized)|AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch")


class StoreDown(Exception):
    """The store did not answer, or failed; the reason in a few words."""


class StoreRefuses(Exception):
    """The store answers, but not to us: no such bucket, no rights, no credentials; the reason in a few words."""


@dataclass(frozen=True, slots=True)
class Found:
    """An entry that a store lists: what it is, and the bytes of its objects."""

    kind: EntryKind
    nbytes: int


class Remote:
    """A store at a URL. Connects when it is first asked something. Safe with any number of threads; not after a fork.

    Args:
        connect: makes the connection; raises what obstore raises.
        clock: seconds, rising.
    """

    def __init__(
        self, url: str, connect: Callable[[], ObjectStore], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.url = url
        self._connect = connect
        self._clock = clock
        self._store: ObjectStore | None = None
        self._guard = threading.Lock()
        self._answers: dict[str, tuple[float, Found | None]] = {}
        self._left_alone_until = float("-inf")

    @property
    def is_left_alone(self) -> bool:
        """Whether the store failed a short while ago."""
        return self._clock() < self._left_alone_until

    def leave_alone(self) -> None:
        """Ask nothing of the store for a minute."""
        self._left_alone_until = self._clock() + _LEFT_ALONE_SECONDS

    def find(self, keys: Collection[str]) -> dict[str, Found]:
        """The whole entries among `keys`.

        Raises:
            StoreDown, StoreRefuses: the store cannot be asked.
        """
        now = self._clock()
        asked = [key for key in keys if not self._is_answered(key, now)]
        groups: dict[str, list[str]] = defaultdict(list)
        for key in asked:
            groups[checked_key(key)[:2]].append(key)
        if groups:
            self.connected()
            with ThreadPoolExecutor(min(REQUESTS_AT_A_TIME, len(groups))) as pool:
                unanswered = [key for rest in pool.map(self._look_into, groups.values()) for key in rest]
            if unanswered:
                with ThreadPoolExecutor(min(REQUESTS_AT_A_TIME, len(unanswered))) as pool:
                    list(pool.map(self._look_for, unanswered))
        answers = {key: self._answers.get(key, (0.0, None))[1] for key in keys}
        return {key: found for key, found in answers.items() if found is not None}

    def forget(self) -> None:
        """Ask anew from now on: others may have put more there."""
        self._answers.clear()

    def remember(self, key: str, found: Found) -> None:
        """Note that the entry `key` is there, because it was put there."""
        self._answers[key] = (self._clock(), found)

    def read(self, name: str, limit: int) -> bytes | None:
        """The object `name`, of at most `limit` bytes; None when it is not there.

        Raises:
            ValueError: it is larger.
            StoreDown, StoreRefuses: the store cannot be asked.
        """
        store = self.connected()
        import obstore

        try:
            with explained():
                answer = obstore.get(store, name)
                if answer.meta["size"] > limit:
                    raise ValueError(f"{answer.meta['size']} bytes where at most {limit} are allowed")
                return bytes(answer.bytes())
        except FileNotFoundError:
            return None

    def parts(self, name: str, size: int) -> Iterator[memoryview]:
        """The object `name` in order, a part at a time. One part takes one request, more take one more.

        Raises:
            ValueError: it has not exactly `size` bytes, or is not there.
            StoreDown, StoreRefuses: the store cannot be asked.
        """
        try:
            with explained():
                yield from self._parts(name, size)
        except FileNotFoundError:
            raise ValueError("its chunks are not there") from None

    def _parts(self, name: str, size: int) -> Iterator[memoryview]:
        store = self.connected()
        import obstore

        if size <= PART_BYTES:
            answer = obstore.get(store, name)
            _check_size(answer.meta["size"], size)
            yield memoryview(answer.bytes())
            return
        _check_size(obstore.head(store, name)["size"], size)
        for start in range(0, size, PART_BYTES):
            yield memoryview(obstore.get_range(store, name, start=start, end=min(size, start + PART_BYTES)))

    def write(self, name: str, content: bytes | IO[bytes]) -> None:
        """Puts an object, whole or not at all, in place of one that is there.

        Raises:
            StoreDown, StoreRefuses: the store cannot be asked.
        """
        store = self.connected()
        import obstore

        try:
            with explained():
                obstore.put(store, name, content, chunk_size=PART_BYTES, max_concurrency=_PARTS_AT_A_TIME)
        except FileNotFoundError:
            raise StoreRefuses("there is no such bucket") from None

    def connected(self) -> ObjectStore:
        """The connection.

        Raises:
            CacheError: obstore is not installed.
            StoreDown, StoreRefuses: no store can be reached with this URL and environment.
        """
        with self._guard:
            if self._store is None:
                with explained():
                    self._store = self._connect()
            return self._store

    def _is_answered(self, key: str, now: float) -> bool:
        answer = self._answers.get(key)
        return answer is not None and now - answer[0] < _ANSWERS_HOLD_SECONDS

    def _look_into(self, keys: Sequence[str]) -> list[str]:
        """Answers `keys`, which share their first two digits, and returns those that it did not get to."""
        if len(keys) == 1:
            return list(keys)
        sizes: dict[str, dict[str, int]] = {}
        wanted = frozenset(keys)
        ended = False
        names = self._list(f"v1/{keys[0][:2]}")
        for _ in range(len(keys)):
            page = next(names, None)
            if page is None:
                ended = True
                break
            for key, name, size in page:
                if key in wanted:
                    sizes.setdefault(key, {})[name] = size
        # One that is whole is found, wherever the list was given up.
        found = {key: _found(sizes.get(key, {})) for key in keys}
        self._answer({key: entry for key, entry in found.items() if ended or entry is not None})
        return [] if ended else [key for key, entry in found.items() if entry is None or entry.kind == "record"]

    def _look_for(self, key: str) -> None:
        sizes = {name: size for page in self._list(f"v1/{key[:2]}/{key}") for found, name, size in page if found == key}
        self._answer({key: _found(sizes)})

    def _answer(self, found: dict[str, Found | None]) -> None:
        now = self._clock()
        self._answers.update({key: (now, entry) for key, entry in found.items()})

    def _list(self, prefix: str) -> Iterator[list[tuple[str, str, int]]]:
        """(key, name, size) of the objects below `prefix` that lie where an entry's do, about a request at a time."""
        store = self.connected()
        import obstore

        with explained():
            for page in obstore.list(store, prefix, chunk_size=_NAMES_PER_REQUEST):
                yield list(_entries(page_names=((meta["path"], meta["size"]) for meta in page)))


def _entries(page_names: Iterable[tuple[str, int]]) -> Iterator[tuple[str, str, int]]:
    for path, size in page_names:
        match path.split("/"):
            case ["v1", _, key, name]:
                yield key, name, size


def _found(sizes: dict[str, int]) -> Found | None:
    """The entry of these objects; None unless it is whole."""
    if DOCUMENT_NAME not in sizes:
        return None
    chunks = [size for name, size in sizes.items() if _CHUNKS.fullmatch(name)]
    return Found("tensor" if chunks else "record", sizes[DOCUMENT_NAME] + sum(chunks))


def _check_size(found: int, expected: int) -> None:
    if found != expected:
        raise ValueError(f"its chunks take {found} bytes where {expected} are needed")


@contextmanager
def explained() -> Iterator[None]:
    """Turns obstore's errors into StoreDown or StoreRefuses. FileNotFoundError of an object passes, as do ours."""
    try:
        yield
    except (MergeflowError, StoreDown, StoreRefuses):
        raise
    except Exception as error:
        from obstore.exceptions import BaseError

        if isinstance(error, (BaseError, FileNotFoundError)):
            refusal = _refusal(error)
            if refusal is not None:
                raise StoreRefuses(refusal) from error
        if isinstance(error, BaseError):
            raise StoreDown(_short(error)) from error
        raise


def _refusal(error: Exception) -> str | None:
    """What the user must mend, when it is that."""
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    text = str(error)
    if _NO_BUCKET.search(text):
        return "there is no such bucket"
    if _METADATA.search(text):
        return "no credentials were found in the environment"
    if isinstance(error, (PermissionDeniedError, UnauthenticatedError)) or _DENIED.search(text):
        return "access is denied; look at the credentials in the environment"
    if "builder error" in text:
        return "its endpoint is no https address; for a server of your own, AWS_ALLOW_HTTP=true allows http"
    if re.search("must be specified|Missing (Access|Secret)", text) or "canonicalize filesystem root" in text:
        return _short(error)
    return None


def _short(error: Exception) -> str:
    """The reason that obstore gives, in one line, without its internals."""
    first = str(error).partition("\n")[0]
    reason = re.sub(r"^Generic \w+ error: ", "", first.rpartition(" - ")[2].strip())
    return reason[:160] or type(error).__name__


def connect(url: str) -> ObjectStore:
    """A connection to the store at `url`, which `place.checked_url` has seen.

    Raises:
        CacheError: obstore is not installed.
    """
    try:
        from obstore.store import from_url
    except ImportError as error:
        raise CacheError(f"the cache {url} needs the package obstore: pip install 'mergeflow[s3]'") from error
    if url.startswith("file:"):
        return from_url(url, mkdir=True)
    return from_url(
        url,
        # No client_options: they would hide those that the environment names (AWS_ALLOW_HTTP, AWS_TIMEOUT, ...).
        retry_config={
            "max_retries": 3,
            "backoff": {
                "init_backoff": timedelta(seconds=0.1),
                "max_backoff": timedelta(seconds=2),
                "base": 2,
            },
            "retry_timeout": timedelta(seconds=60),
        },
    )
