"""Models on the Hugging Face hub: described from their headers, downloaded only when a run needs the bytes.

`describe` asks the hub once what the model consists of, which pins the revision to its commit: whatever is read
afterwards is of that commit. The headers of the weights are the first bytes of each file. When the hub's cache on this
machine holds every file of that commit that we need, the model is opened there.

What cannot be asked (no network, or `HF_HUB_OFFLINE=1`) is answered from the cache if the revision was downloaded
before; without `HF_HUB_OFFLINE`, the log says so. The cache is the one that transformers uses too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mergeflow.errors import CheckpointError
from mergeflow.models.checkpoint import open_checkpoint, read_config
from mergeflow.models.files import LOCK_NAME, choose
from mergeflow.models.gguf import tell_of_tokenizer
from mergeflow.models.hub_cache import DEFAULT_HUB, Hub, cached_commit, has_files, keep_commit
from mergeflow.models.hub_errors import expected_errors, explain, is_unreachable
from mergeflow.models.hub_transfer import cached_file, download_files, remote_gguf, remote_weights
from mergeflow.models.identity import REMOTE
from mergeflow.models.index import assemble, parse_index
from mergeflow.models.records import Checkpoint, FileIdentity
from mergeflow.models.weights import DELTA_INDEX_NAME, DELTA_NAME, GGUF, MODEL, REPOSITORY, Contents, Tensors

_LOG = logging.getLogger(__name__)
ASK_SECONDS = 15.0
HEADERS_AT_ONCE = 8
# A tokenizer takes up to some 40 MB; what is larger and no weights (videos, data) is not part of a model.
MAX_CARRIED_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class _RemoteFile:
    """A file as the hub lists it. `sha256` is known of large files only."""

    size: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class _Listing:
    """A model at one commit."""

    repo_id: str
    commit: str
    files: Mapping[str, _RemoteFile]


def describe(
    repo_id: str,
    revision: str | None = None,
    *,
    hub: Hub = DEFAULT_HUB,
    label: str = "",
    contents: Contents = MODEL,
) -> Checkpoint:
    """Open a hub model from its headers. `folder` is None unless all of it is in the cache.

    Args:
        revision: branch, tag or commit; None for the default branch.
        label: the model as the user wrote it.
        contents: whether it is a model or an adapter.

    Raises:
        CheckpointError: unknown, restricted or out of reach, or its files are damaged.
    """
    from huggingface_hub import constants

    model = f"{repo_id}@{revision}" if revision else repo_id
    try:
        listing = _ask(repo_id, revision, hub)
        return _open(listing, label or model, hub, contents)
    except expected_errors() as error:
        cached = _from_cache(repo_id, revision, label or model, hub, contents) if is_unreachable(error) else None
        if cached is None:
            raise explain(error, model, hub.address) from error
        if not constants.HF_HUB_OFFLINE:
            _LOG.warning("%s: the hub cannot be asked; the cached commit %s is used", model, cached.revision)
        return cached


def fetch(
    repo_id: str, commit: str, files: Sequence[str], on_bytes: Callable[[int], None], *, hub: Hub = DEFAULT_HUB
) -> Path:
    """Download files of one commit into the cache, and return the folder they are in.

    Args:
        files: paths in the repository; those already there are not downloaded again.
        on_bytes: told how many more bytes have come.

    Raises:
        CheckpointError: the hub cannot be reached or refuses.
        RunError: the disk is full or cannot be written.
    """
    try:
        download_files(hub, repo_id, commit, files, on_bytes)
    except expected_errors() as error:
        raise explain(error, f"{repo_id}@{commit}", hub.address) from error
    return hub.snapshot(repo_id, commit)


def small_file(repo_id: str, commit: str, name: str, *, hub: Hub = DEFAULT_HUB) -> Path:
    """A file of one commit that is needed before anything is downloaded, such as a tokenizer; kept in the cache.

    Raises:
        CheckpointError: the hub cannot be reached or refuses.
    """
    try:
        return cached_file(hub, repo_id, commit, name)
    except expected_errors() as error:
        raise explain(error, f"{repo_id}@{commit}", hub.address) from error


def download(
    checkpoint: Checkpoint,
    repo_id: str,
    revision: str | None,
    on_bytes: Callable[[int], None],
    *,
    hub: Hub = DEFAULT_HUB,
    contents: Contents = MODEL,
) -> Checkpoint:
    """The described `checkpoint`, downloaded and opened from the cache.

    Args:
        revision: what the user wrote; noted as this commit, for the time without a network.

    Raises:
        CheckpointError, RunError: as `fetch` and `open_checkpoint`.
    """
    commit = checkpoint.revision
    if commit is None:
        return checkpoint
    if checkpoint.folder is None:
        folder = fetch(repo_id, commit, [*_weights_files(checkpoint), *checkpoint.files], on_bytes, hub=hub)
        checkpoint = open_checkpoint(folder, checkpoint.label, commit, contents=contents)
    keep_commit(hub, repo_id, revision, commit)
    return checkpoint


def _ask(repo_id: str, revision: str | None, hub: Hub) -> _Listing:
    """What the hub says a revision consists of, and which commit it is."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=hub.address)
    info = api.model_info(repo_id, revision=revision, files_metadata=True, timeout=ASK_SECONDS)
    if info.sha is None:
        raise CheckpointError(f"{repo_id}: {hub.address} does not say which commit it is; is it a hub?")
    files = {
        entry.rfilename: _RemoteFile(entry.size or 0, entry.lfs.sha256 if entry.lfs else None)
        for entry in info.siblings or ()
    }
    return _Listing(repo_id, info.sha, files)


def _open(listing: _Listing, label: str, hub: Hub, contents: Contents) -> Checkpoint:
    """The model of a listing: in the cache when it is complete there, else from its headers on the hub."""
    snapshot = hub.snapshot(listing.repo_id, listing.commit)
    carried = _carried(listing)
    found = contents.find([name for name in listing.files if "/" not in name], label, REPOSITORY)
    weight_map: Mapping[str, str] = {}
    if found.index:
        text = cached_file(hub, listing.repo_id, listing.commit, found.index).read_bytes()
        weight_map = parse_index(text, f"{label}: {found.index}", found.index)
    shards = [found.file] if found.file else sorted(set(weight_map.values()))
    if contents is MODEL and LOCK_NAME in listing.files and listing.files[LOCK_NAME].size <= MAX_CARRIED_BYTES:
        cached_file(hub, listing.repo_id, listing.commit, LOCK_NAME)  # how the model was made, when it is a merge
    if has_files(snapshot, [*shards, *carried]):
        return open_checkpoint(snapshot, label, listing.commit, contents=contents)
    missing = [shard for shard in shards if shard not in listing.files]
    if missing:
        raise CheckpointError(f"{label}: {found.index} names {missing[0]!r}, which is not there")
    config: Mapping[str, object] = {}
    if found.file is not None and found.file.lower().endswith(GGUF):
        model = remote_gguf(hub, listing.repo_id, listing.commit, _identity(listing, found.file), found.file)
        headers, config = {found.file: model.tensors}, model.config
    else:
        headers = _headers(listing, shards, hub)
    tensors = assemble(headers, weight_map, f"{REMOTE}{listing.repo_id}@{listing.commit}")
    if not tensors:
        raise CheckpointError(f"{label}: {shards[0]} holds no tensors")
    if contents.config in listing.files:
        config = read_config(cached_file(hub, listing.repo_id, listing.commit, contents.config))
    elif config:
        tell_of_tokenizer(label, listing.files)
    is_delta = found.index == DELTA_INDEX_NAME or found.file == DELTA_NAME
    return Checkpoint(label, None, tensors, config, carried, listing.commit, is_delta=is_delta)


def _headers(listing: _Listing, shards: Sequence[str], hub: Hub) -> dict[str, Tensors]:
    def read(shard: str) -> Tensors:
        return remote_weights(hub, listing.repo_id, listing.commit, _identity(listing, shard), shard)

    with ThreadPoolExecutor(HEADERS_AT_ONCE, thread_name_prefix="header") as pool:
        return dict(zip(shards, pool.map(read, shards), strict=True))


def _identity(listing: _Listing, name: str) -> FileIdentity:
    remote = listing.files[name]
    content = f"sha256:{remote.sha256}" if remote.sha256 else None
    path = f"{REMOTE}{listing.repo_id}@{listing.commit}/{name}"
    return FileIdentity(path, remote.size, mtime_ns=0, inode=0, device=0, content=content)


def _carried(listing: _Listing) -> tuple[str, ...]:
    chosen = choose(listing.files).carried
    return tuple(path for path in chosen if listing.files[path].size <= MAX_CARRIED_BYTES)


def _weights_files(checkpoint: Checkpoint) -> list[str]:
    """The shards of a described model, as paths in its repository."""
    sources = [source for tensor in checkpoint.tensors.values() for source in tensor.sources()]
    paths = {segment.file.path for source in sources for segment in source.segments}
    return sorted(path.partition(f"@{checkpoint.revision}/")[2] for path in paths)


def _from_cache(repo_id: str, revision: str | None, label: str, hub: Hub, contents: Contents) -> Checkpoint | None:
    """The model as it was last downloaded; None when it never was.

    Raises:
        CheckpointError: it was downloaded in part.
    """
    commit = cached_commit(hub, repo_id, revision)
    if commit is None or not hub.snapshot(repo_id, commit).is_dir():
        return None
    try:
        return open_checkpoint(hub.snapshot(repo_id, commit), label, commit, contents=contents)
    except CheckpointError as error:
        raise CheckpointError(f"{error} (the hub cannot be asked, and the cache holds only part of it)") from error
