"""Bytes from the hub: the first ones of a file, or whole files into the cache.

Reading a header takes one request of 100 kB for nearly every file (97 % of the headers on the hub are shorter), and a
second one for the others. The answer is read as a stream and cut off: a server or proxy that ignores the range would
otherwise send the whole file into memory.

Of a pickled file it takes two or three: its start, where the pickle is, and its end, where the directory is. Of a GGUF
file it takes one for each megabyte of its header, most of which is a vocabulary.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

from mergeflow.errors import CheckpointError
from mergeflow.models.gguf import Gguf, gguf_model
from mergeflow.models.header import PREFIX_BYTES, Header, header_bytes, parse_header
from mergeflow.models.hub_cache import Hub
from mergeflow.models.index import PICKLED_SUFFIXES
from mergeflow.models.pickled import pickled_tensors
from mergeflow.models.records import FileIdentity
from mergeflow.models.weights import SAFETENSORS, Tensors, weights_suffix

FIRST_REQUEST_BYTES = 100_000
RETRIES = 2
_PARTIAL = 206  # the status of an answer that is the range that was asked for
DOWNLOADS_AT_ONCE = 8


class Progress(Protocol):
    """What `huggingface_hub` calls while it downloads: the few methods of a tqdm bar it needs."""

    def update(self, n: float | None = 1) -> None: ...


class _Interrupted(Exception):
    """Raised inside a download to end it: another one failed, or the user interrupted the run."""


def remote_weights(hub: Hub, repo_id: str, commit: str, file: FileIdentity, name: str) -> Tensors:
    """The tensors of the file `name`, from what describes them: none of their bytes is sent.

    Raises:
        CheckpointError: it is damaged.
        Exception: what huggingface_hub raises (`hub_errors.expected_errors`).
    """
    suffix = weights_suffix(name, file.path)
    if suffix == SAFETENSORS:
        return remote_header(hub, repo_id, commit, file, name).tensors
    ranges = RemoteRanges(hub, repo_id, commit, file, name)
    return pickled_tensors(ranges) if suffix in PICKLED_SUFFIXES else gguf_model(ranges).tensors


def remote_gguf(hub: Hub, repo_id: str, commit: str, file: FileIdentity, name: str) -> Gguf:
    """The model of a GGUF file, its configuration included. Raises as `remote_weights`."""
    return gguf_model(RemoteRanges(hub, repo_id, commit, file, name))


class RemoteRanges:
    """Ranges of a file on the hub (`Ranges`). Each request brings more than it must, which is kept for the next."""

    is_near = False

    def __init__(self, hub: Hub, repo_id: str, commit: str, file: FileIdentity, name: str) -> None:
        self.file = file
        self._ask = partial(_some_bytes, hub, repo_id, commit, name)
        self._kept: list[tuple[int, bytes]] = []

    def read(self, offset: int, count: int) -> bytes:
        """As `Ranges.read`."""
        count = max(0, min(count, self.file.size - offset))
        for start, text in self._kept:
            if start <= offset and offset + count <= start + len(text):
                return text[offset - start : offset - start + count]
        text = self._ask(offset, min(max(count, FIRST_REQUEST_BYTES), self.file.size - offset))
        if len(text) < count:
            raise CheckpointError(f"{self.file.path}: the hub sent {len(text)} bytes of {count}; try again")
        self._kept.append((offset, text))
        return text[:count]


def remote_header(hub: Hub, repo_id: str, commit: str, file: FileIdentity, name: str) -> Header:
    """The validated header of the file `name`, without its weights.

    Raises:
        CheckpointError: it is not a sound safetensors file.
        Exception: what huggingface_hub raises (`hub_errors.expected_errors`).
    """
    start = _some_bytes(hub, repo_id, commit, name, 0, min(file.size, FIRST_REQUEST_BYTES))
    end = PREFIX_BYTES + header_bytes(start[:PREFIX_BYTES], file)
    if end > len(start):
        start = _some_bytes(hub, repo_id, commit, name, 0, end)
    if len(start) < end:
        raise CheckpointError(f"{file.path}: the hub sent {len(start)} bytes of its header's {end}; try again")
    return parse_header(start[PREFIX_BYTES:end], file)


def cached_file(hub: Hub, repo_id: str, commit: str, name: str) -> Path:
    """A small file of a model, downloaded into the cache unless it is there."""
    return _download(hub, repo_id, commit, name, _counter(lambda _count: None, threading.Event()))


def download_files(hub: Hub, repo_id: str, commit: str, files: Sequence[str], on_bytes: Callable[[int], None]) -> None:
    """Download files into the cache, several at once; those that are there are not downloaded again.

    Args:
        on_bytes: told how many more bytes have come; one call at a time, from several threads.
    """
    stop = threading.Event()
    counter = _counter(on_bytes, stop)
    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE, thread_name_prefix="download") as pool:
        futures = [pool.submit(_download, hub, repo_id, commit, name, counter) for name in files]
        try:
            for future in as_completed(futures):
                future.result()
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _some_bytes(hub: Hub, repo_id: str, commit: str, name: str, start: int, count: int) -> bytes:
    """`count` bytes of a file from `start` on; fewer when the hub sends no more."""
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # public, but not declared as such
        build_hf_headers,
        hf_raise_for_status,
        http_stream_backoff,
    )

    if count == 0:
        return b""
    url = hf_hub_url(repo_id, name, revision=commit, endpoint=hub.address)
    headers = {**build_hf_headers(), "Range": f"bytes={start}-{start + count - 1}", "Accept-Encoding": "identity"}
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with http_stream_backoff("GET", url, headers=headers, timeout=timeout, max_retries=RETRIES) as response:
        hf_raise_for_status(response)
        if start and response.status_code != _PARTIAL:
            raise CheckpointError(
                f"{repo_id}: {hub.address} sends whole files only; download it and name the local copy"
            )
        found = bytearray()
        for chunk in response.iter_bytes():
            found += chunk
            if len(found) >= count:
                break
    return bytes(found[:count])


def _download(hub: Hub, repo_id: str, commit: str, name: str, counter: type[Progress]) -> Path:
    from huggingface_hub import hf_hub_download

    path = hf_hub_download(
        repo_id,
        name,
        revision=commit,
        endpoint=hub.address,
        cache_dir=hub.cache,
        tqdm_class=cast(Any, counter),  # declared as a tqdm, of which only `Progress` is used
    )
    return Path(path)


def _counter(on_bytes: Callable[[int], None], stop: threading.Event) -> type[Progress]:
    """A progress bar that shows nothing: it counts bytes, and ends the download when `stop` is set."""
    guard = threading.Lock()

    class Counter:
        def __init__(self, *_: object, total: float | None = None, **__: object) -> None:
            self.total = total
            self.n = 0.0

        def __enter__(self) -> Counter:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, n: float | None = 1) -> None:
            if stop.is_set():
                raise _Interrupted
            with guard:
                on_bytes(int(n or 0))

        # Bytes on the wire, as opposed to bytes in the file: counted once is enough.
        def update_transfer(self, n: float | None = 1) -> None:
            pass

        def set_postfix_str(self, *_: object, **__: object) -> None:
            pass

        set_transfer_postfix_str = set_description = set_description_str = refresh = close = set_postfix_str

    return Counter
