"""Where entries lie, and how they come and go: always by one rename, so that nobody ever sees half of one.

    <root>/v1/CACHEDIR.TAG                     vouches that this folder is ours (and tells backup tools to skip it)
    <root>/v1/ab/ab12...                       one zarr node for each key
    <root>/v1/.tmp/<machine>-<process>-<x>     work in progress and rubbish, named after the process that owns it
    <root>/v1/.leases/<machine>-<process>-<x>  what a run that is under way needs (see `leases`)
    <root>/v1/.pins/<name>.json                what shall stay until somebody says otherwise (see `pins`)
    <root>/v1/.lock                            held by whoever removes what has been used least (see `limit`)

**Publishing**: a folder is finished under .tmp, then renamed to its key. If the key is there already, another process
was faster; its value is the same by construction, so the first stays and ours is dropped, unless the first is damaged.
Nothing is synced to disk: after a power cut an entry may be short or zeroed, which sizes and checksums find, and it is
computed again.

**Removing** is a rename into .tmp first, then deletion: an entry is there whole, or not at all.

**Sweeping**: work is abandoned when its owner is dead. A process is known by its id and start time within one boot and
one process namespace (so containers and hosts that share a folder do not mistake each other's processes). Of owners on
other machines nothing can be known, so their work counts as abandoned when nothing was added to it for a day. Clocks
of machines differ and may be set back: what looks as if it came out of the future is not abandoned.
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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from mergeflow.errors import CacheError

ABANDONED_AFTER_SECONDS = 24 * 3600.0

_KEY = re.compile(r"[0-9a-f]{64}")
_PREFIX = re.compile(r"[0-9a-f]{2}")
_NODE_FILE = re.compile(r"zarr\.json|c(\.0)*")
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

    @property
    def leases(self) -> str:
        return f"{self.base}/.leases"

    @property
    def pins(self) -> str:
        return f"{self.base}/.pins"

    @property
    def lock(self) -> str:
        return f"{self.base}/.lock"

    def entry(self, key: str) -> str:
        """The folder of the entry `key`, whether it exists or not. ValueError when it is not a key."""
        return f"{self.base}/{checked_key(key)[:2]}/{key}"

    def is_ours(self) -> bool:
        """Whether the folder carries the tag. A link in its place is not ours."""
        if os.path.islink(self.base) or os.path.islink(self.tag):
            return False
        try:
            return _is_tag(Path(self.tag).read_bytes())
        except OSError:
            return False

    def new_work(self) -> str:
        """A new empty folder below .tmp.

        Raises:
            CacheError: the cache folder cannot be used.
            OSError: the disk is full or failed.
        """
        work = f"{self.works}/{owned_name()}"
        for _ in range(_ATTEMPTS):
            try:
                with self._explained():
                    os.mkdir(work)
                return work
            except FileNotFoundError:
                # Whoever removes the cache at this moment may remove what is made here, too: try again.
                with contextlib.suppress(FileNotFoundError), self._explained():
                    self._prepare()
        raise FileNotFoundError(errno.ENOENT, "it keeps being removed", self.base)

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
                with contextlib.suppress(FileNotFoundError):
                    _make_folders(parent)
            except OSError as error:
                if error.errno not in _OCCUPIED:
                    raise
                if is_intact():
                    delete(work)
                    return False
                self.discard(target if os.path.isdir(parent) else parent)
        raise FileNotFoundError(errno.ENOENT, "it keeps being replaced or removed by others", target)

    def discard(self, path: str) -> None:
        """Removes `path` in one step, whatever it is; nothing happens when it is not there."""
        if not os.path.lexists(path):
            return
        rubbish = self.new_work()
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, f"{rubbish}/removed")
        delete(rubbish)

    def discard_all(self, paths: Iterable[str]) -> int:
        """Removes each of `paths` in one step, and returns how many were there. Taken one by one, as they come."""
        removed = 0
        rubbish: str | None = None
        try:
            for path in paths:
                rubbish = rubbish or self.new_work()
                with contextlib.suppress(FileNotFoundError):
                    os.rename(path, f"{rubbish}/{removed}")
                    delete(f"{rubbish}/{removed}")
                    removed += 1
        finally:
            if rubbish is not None:
                delete(rubbish)
        return removed

    def place_file(self, folder: str, name: str, content: bytes) -> str:
        """Puts a file into `folder` (`leases` or `pins`), whole or not at all, and returns its path.

        Raises:
            CacheError: the cache folder cannot be used.
            OSError: the disk is full or failed.
        """
        work = self.new_work()
        try:
            Path(f"{work}/file").write_bytes(content)
            os.makedirs(folder, exist_ok=True)
            os.replace(f"{work}/file", f"{folder}/{name}")
        finally:
            delete(work)
        return f"{folder}/{name}"

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
        if not os.path.isdir(self.works) or not self._is_tagged_again():
            return 0
        abandoned = self.abandoned_work(now)
        for path in abandoned:
            delete(path)
        return len(abandoned)

    def abandoned_work(self, now: float | None = None) -> list[str]:
        """What `sweep` deletes."""
        moment = time.time() if now is None else now
        return [path for path in self._work_folders() if is_abandoned(path, moment)]

    def _work_folders(self) -> Iterator[str]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            yield from (f"{self.works}/{name}" for name in os.listdir(self.works))

    def _prepare(self) -> None:
        """Makes the folder, or raises CacheError when one that is not ours stands in its place.

        The tag comes before .tmp, which everybody needs to publish anything: who sees an entry finds the tag too. Only
        when somebody removes the whole folder while others write can entries be left without one. So a folder that
        holds nothing but what a cache has gets its tag back.
        """
        _make_folders(self.base)
        names = {name for name in os.listdir(self.base) if not name.startswith(_DRAFT)}
        # Looked for after listing: whoever published an entry had seen the tag before it.
        if not self.is_ours():
            cut_off = names <= {os.path.basename(self.works), os.path.basename(self.tag)}
            if not cut_off and (self._is_tagged_by_others() or not all(map(self._may_be_ours, names))):
                raise CacheError(f"{self.base} holds files but is not a mergeflow cache; name another folder")
            self._write_tag()
        _make_folders(self.works)
        if not os.path.lexists(self.tag):
            self._write_tag()

    def _write_tag(self) -> None:
        draft = f"{self.base}/{_DRAFT}{secrets.token_hex(8)}"
        Path(draft).write_bytes(_TAG)
        os.replace(draft, self.tag)

    def _is_tagged_again(self) -> bool:
        """Whether the folder carries the tag, after it got back one that a removal has taken while others wrote."""
        if not self.is_ours():
            with contextlib.suppress(CacheError, OSError):
                self._prepare()
        return self.is_ours()

    def _is_tagged_by_others(self) -> bool:
        """Whether something stands where the tag should, and is not ours; or the whole folder is a link."""
        if os.path.islink(self.base) or os.path.islink(self.tag):
            return True
        try:
            return not _is_tag(Path(self.tag).read_bytes())
        except FileNotFoundError:
            return False
        except OSError:
            return True

    def _may_be_ours(self, name: str) -> bool:
        """Whether a name in a folder without a tag is one that a cache has, and holds nothing but entries."""
        if name in {os.path.basename(path) for path in (self.works, self.leases, self.pins, self.lock, self.tag)}:
            return True
        return _PREFIX.fullmatch(name) is not None and all(
            is_key(key) and key.startswith(name) and _is_node(f"{self.base}/{name}/{key}") for key in self.names(name)
        )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns what is wrong with the folder itself (rights, a file in its place) into a CacheError that names it."""
        try:
            yield
        except OSError as error:
            if error.errno in _NOT_USABLE:
                raise CacheError(f"the cache folder {self.root} cannot be written: {error.strerror}") from error
            raise


def _is_tag(content: bytes) -> bool:
    return content.startswith(_TAG_SIGNATURE) and b"mergeflow" in content


def _make_folders(path: str) -> None:
    """Makes a folder and those above it. One that is removed while this looks at it is a FileNotFoundError."""
    try:
        os.makedirs(path, exist_ok=True)
    except FileExistsError as error:
        if os.path.lexists(path) and not os.path.isdir(path):
            raise
        raise FileNotFoundError(errno.ENOENT, "it was removed", path) from error


def _is_node(path: str) -> bool:
    """Whether a folder may be an entry, or what is left of one that is being removed."""
    if os.path.islink(path) or not os.path.isdir(path):
        return not os.path.lexists(path)
    return all(map(_NODE_FILE.fullmatch, os.listdir(path)))


def delete(path: str) -> None:
    """Deletes a file, link or tree below .tmp; a link is removed, never followed. What stays is swept later."""
    with contextlib.suppress(OSError):
        if os.path.islink(path) or not os.path.isdir(path):
            os.unlink(path)
        else:
            shutil.rmtree(path, ignore_errors=True)


def latest_doubtless_time(folders: Folders, now: float | None = None) -> float:
    """Seconds since 1970 by this machine's clock or the disk's, whichever is behind: nothing is older than by it.

    Args:
        now: this machine's time; the clock's when it is None.
    """
    mine = time.time() if now is None else now
    try:
        work = folders.new_work()
        theirs = os.stat(work).st_mtime
        delete(work)
    except (OSError, CacheError):
        return mine
    return min(mine, theirs)


def owned_name() -> str:
    """A name that nobody has, for what this process owns: it says whether the owner lives."""
    return f"{_owner(os.getpid())}-{secrets.token_hex(8)}"


def is_abandoned(path: str, now: float) -> bool:
    """Whether the owner of `path` (named by `owned_name`) is dead; when nobody can tell, whether it is a day old."""
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
