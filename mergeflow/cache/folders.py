"""Where entries lie, and how they come and go: always by one rename, so that nobody ever sees half of one.

    <root>/v1/CACHEDIR.TAG                     vouches that this folder is ours (and tells backup tools to skip it)
    <root>/v1/ab/ab12...                       one zarr node for each key
    <root>/v1/.tmp/<machine>-<process>-<x>     work in progress and rubbish, named after the process that owns it

**Publishing**: a folder is finished under .tmp, then renamed to its key. If the key is there already, another process
was faster; its value is the same by construction, so the first stays and ours is dropped, unless the first is damaged.
Nothing is synced to disk: after a power cut an entry may be short or zeroed, which sizes and checksums find, and it is
computed again.

**Removing** is a rename into .tmp first, then deletion: an entry is there whole, or not at all.

**Sweeping**: work is abandoned when its owner is dead. A process is known by its id and start time within one boot and
one process namespace (so containers and hosts that share a folder do not mistake each other's processes). Of owners on
other machines nothing can be known, so their work counts as abandoned when nothing was added to it for a day.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from mergeflow.errors import CacheError

ABANDONED_AFTER_SECONDS = 24 * 3600.0

_KEY = re.compile(r"[0-9a-f]{64}")
_PREFIX = re.compile(r"[0-9a-f]{2}")
_TAG_SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55\n"  # https://bford.info/cachedir/
_TAG = _TAG_SIGNATURE + b"# A mergeflow cache. Entries may be deleted at any time: they are computed again.\n"
_DRAFT = ".tag-"
_OCCUPIED = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR})
_NOT_USABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST})
# Each attempt fails only when another process published, removed or cleared in between.
_ATTEMPTS = 16


def is_key(name: str) -> bool:
    """Whether `name` is a key: 64 lowercase hexadecimal digits."""
    return _KEY.fullmatch(name) is not None


def checked_key(key: str) -> str:
    """`key` itself; ValueError when it is not a key, so that nothing else ever names a path."""
    if not is_key(key):
        raise ValueError(f"a cache key is 64 lowercase hexadecimal digits, not {key!r}")
    return key


@dataclass(frozen=True, slots=True)
class Folders:
    """The tree of folders below one cache root. Makes nothing before something is written."""

    root: Path

    @property
    def base(self) -> str:
        return f"{self.root}/v1"

    @property
    def tag(self) -> str:
        return f"{self.base}/CACHEDIR.TAG"

    @property
    def works(self) -> str:
        return f"{self.base}/.tmp"

    def entry(self, key: str) -> str:
        """The folder of the entry `key`, whether it exists or not. ValueError when it is not a key."""
        return f"{self.base}/{checked_key(key)[:2]}/{key}"

    def is_ours(self) -> bool:
        """Whether the folder carries the tag. A link in its place is not ours."""
        if os.path.islink(self.base) or os.path.islink(self.tag):
            return False
        try:
            found = Path(self.tag).read_bytes()
        except OSError:
            return False
        return found.startswith(_TAG_SIGNATURE) and b"mergeflow" in found

    def new_work(self) -> str:
        """A new empty folder below .tmp.

        Raises:
            CacheError: the cache folder cannot be used.
            OSError: the disk is full or failed.
        """
        work = f"{self.works}/{_owner(os.getpid())}-{secrets.token_hex(8)}"
        with self._explained():
            try:
                os.mkdir(work)
            except FileNotFoundError:
                self._prepare()
                os.mkdir(work)
        return work

    def publish(self, work: str, key: str, is_intact: Callable[[], bool]) -> bool:
        """Renames the finished folder `work` to the entry `key`; False when an intact one was there first."""
        target = self.entry(key)
        parent = os.path.dirname(target)
        for _ in range(_ATTEMPTS):
            try:
                os.rename(work, target)
                return True
            except FileNotFoundError:
                if not os.path.isdir(work):
                    raise
                os.makedirs(parent, exist_ok=True)
            except OSError as error:
                if error.errno not in _OCCUPIED:
                    raise
                if is_intact():
                    delete(work)
                    return False
                self.discard(target if os.path.isdir(parent) else parent)
        raise CacheError(f"{target} cannot be published: it keeps being replaced or removed by others")

    def discard(self, path: str) -> None:
        """Removes `path` in one step, whatever it is; nothing happens when it is not there."""
        if not os.path.lexists(path):
            return
        rubbish = self.new_work()
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, f"{rubbish}/removed")
        delete(rubbish)

    def prefixes(self) -> list[str]:
        """The two-digit names under which entries lie, sorted."""
        try:
            return sorted(name for name in os.listdir(self.base) if _PREFIX.fullmatch(name))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def names(self, prefix: str) -> list[str]:
        """Everything below `prefix`, entries or not."""
        try:
            return os.listdir(f"{self.base}/{prefix}")
        except (FileNotFoundError, NotADirectoryError):
            return []

    def keys(self, prefix: str) -> list[str]:
        """The names below `prefix` that are keys and begin with it, sorted."""
        return sorted(name for name in self.names(prefix) if name.startswith(prefix) and is_key(name))

    def sweep(self, now: float | None = None) -> int:
        """Deletes abandoned work, and returns how many pieces. Safe while others write, on any machine.

        Args:
            now: seconds since the epoch; the clock's when it is None.
        """
        moment = time.time() if now is None else now
        abandoned = [path for path in self._work_folders() if _is_abandoned(path, moment)]
        for path in abandoned:
            delete(path)
        return len(abandoned)

    def _work_folders(self) -> Iterator[str]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            yield from (f"{self.works}/{name}" for name in os.listdir(self.works))

    def _prepare(self) -> None:
        """Makes the folder, or raises CacheError when one that is not ours stands in its place.

        The tag comes before .tmp, which everybody needs to publish anything: who sees an entry finds the tag too.
        """
        os.makedirs(self.base, exist_ok=True)
        names = {name for name in os.listdir(self.base) if not name.startswith(_DRAFT)}
        # Looked for after listing: whoever published an entry had seen the tag before it.
        if not self.is_ours():
            if names - {os.path.basename(self.works), os.path.basename(self.tag)}:
                raise CacheError(f"{self.base} holds files but is not a mergeflow cache; name another folder")
            draft = f"{self.base}/{_DRAFT}{secrets.token_hex(8)}"
            Path(draft).write_bytes(_TAG)
            os.replace(draft, self.tag)
        os.makedirs(self.works, exist_ok=True)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns what is wrong with the folder itself (rights, a file in its place) into a CacheError that names it."""
        try:
            yield
        except OSError as error:
            if error.errno in _NOT_USABLE:
                raise CacheError(f"the cache folder {self.root} cannot be written: {error.strerror}") from error
            raise


def delete(path: str) -> None:
    """Deletes a file, link or tree below .tmp; a link is removed, never followed. What stays is swept later."""
    with contextlib.suppress(OSError):
        if os.path.islink(path) or not os.path.isdir(path):
            os.unlink(path)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(path: str, now: float) -> bool:
    machine, _, rest = os.path.basename(path).partition("-")
    process = rest.rpartition("-")[0]
    if machine == _machine():
        process_id = process.partition(".")[0]
        return not process_id.isdecimal() or _process(int(process_id)) != process
    try:
        return now - os.lstat(path).st_mtime > ABANDONED_AFTER_SECONDS
    except OSError:
        return False


@functools.lru_cache(maxsize=1)
def _owner(process_id: int) -> str:
    """The name of this process in .tmp. Its id is the argument so that a forked child gets a name of its own."""
    return f"{_machine()}-{_process(process_id)}"


def _process(process_id: int) -> str | None:
    """A name for a living process that a later one of the same id does not share; None when there is none."""
    try:
        status = Path(f"/proc/{process_id}/stat").read_bytes()
    except OSError:
        return None if os.path.isdir("/proc/self") else f"{process_id}.0"
    # The second field is the program's name in brackets and may hold spaces; the start time is the 22nd.
    started = status.rpartition(b")")[2].split()[19].decode("ascii")
    return f"{process_id}.{started}"


@functools.cache
def _machine() -> str:
    """A name for this boot of this machine and this process namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        # Without them a process cannot be told apart from one elsewhere: a name nobody else has, so age decides.
        return secrets.token_hex(8)
    return blake3(f"{boot}{namespace}".encode()).hexdigest()[:16]
