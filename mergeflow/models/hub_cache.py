"""Where the hub is, and what of it is on this machine already.

    <cache>/models--org--name/refs/main                  the commit that `main` was when it was last downloaded
    <cache>/models--org--name/snapshots/<commit>/...     links into blobs/: one folder per commit, complete or not

The layout is documented by huggingface_hub and shared by every tool that uses it. We read it, and write nothing into
it but a ref, after the files of its commit are complete: so that `HF_HUB_OFFLINE=1` finds tomorrow what was downloaded
today.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_LOG = logging.getLogger(__name__)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHORT_COMMIT = re.compile(r"[0-9a-f]{7,39}")
DEFAULT_REVISION = "main"


@dataclass(frozen=True, slots=True)
class Hub:
    """A hub and its cache on this machine. None: as huggingface_hub's environment says (HF_ENDPOINT, HF_HOME)."""

    endpoint: str | None = None
    cache: Path | None = None

    @property
    def address(self) -> str:
        """The hub's URL, without a slash at its end."""
        from huggingface_hub import constants

        return self.endpoint or constants.ENDPOINT

    def repository(self, repo_id: str) -> Path:
        """The cache's folder for a model."""
        from huggingface_hub import constants

        return (self.cache or Path(constants.HF_HUB_CACHE)) / f"models--{repo_id.replace('/', '--')}"

    def snapshot(self, repo_id: str, commit: str) -> Path:
        """The folder of one commit, which need not exist."""
        return self.repository(repo_id) / "snapshots" / commit


# The hub of the environment: huggingface.co unless it says otherwise.
DEFAULT_HUB = Hub()


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a full commit, which can never mean anything else."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def cached_commit(hub: Hub, repo_id: str, revision: str | None) -> str | None:
    """The commit that a revision was when it was last downloaded; None when it never was."""
    wanted = revision or DEFAULT_REVISION
    if is_commit(wanted):
        return wanted if hub.snapshot(repo_id, wanted).is_dir() else None
    repository = hub.repository(repo_id)
    ref = _ref(repository, wanted)
    if ref is not None and ref.is_file():
        return ref.read_text().strip()
    if _SHORT_COMMIT.fullmatch(wanted):
        matches = [folder.name for folder in (repository / "snapshots").glob(f"{wanted}*")]
        return matches[0] if len(matches) == 1 else None
    return None


def has_files(snapshot: Path, files: Iterable[str]) -> bool:
    """Whether every one of these files of a snapshot is on this machine."""
    return all((snapshot / file).is_file() for file in files)


def keep_commit(hub: Hub, repo_id: str, revision: str | None, commit: str) -> None:
    """Note which commit a revision is, for the time without a network. A cache that cannot be written is no error."""
    ref = _ref(hub.repository(repo_id), revision or DEFAULT_REVISION)
    if ref is None or is_commit(revision) or cached_commit(hub, repo_id, revision) == commit:
        return
    try:
        ref.parent.mkdir(parents=True, exist_ok=True)
        descriptor, draft = tempfile.mkstemp(dir=ref.parent)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(commit)
        os.replace(draft, ref)
    except OSError as error:
        _LOG.warning("%s: the downloaded revision is not noted for offline use: %s", repo_id, error)


def _ref(repository: Path, revision: str) -> Path | None:
    """The file that notes a revision's commit; None for a revision that is no plain name."""
    name = PurePosixPath(revision)
    if name.is_absolute() or ".." in name.parts or not name.parts:
        return None
    return repository / "refs" / name
