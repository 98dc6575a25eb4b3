"""What may not be removed from a cache just now: the keys of leases and pins, read again whenever there is another."""

from __future__ import annotations

import os

from mergeflow.cache.folders import Folders, latest_doubtless_time
from mergeflow.cache.leases import names_of_leases, read_lease
from mergeflow.cache.pins import names_of_pins, read_pin

_Listing = frozenset[tuple[str, int]]


class Protection:
    """The keys that runs under way and pins need, as of now.

    Asking reads two lists of names, and files only where the lists have changed since. One thread at a time.

    Args:
        leases, pins: False to leave out the one or the other.
        now: seconds since 1970; the clock's when it is None.
    """

    def __init__(self, folders: Folders, *, leases: bool = True, pins: bool = True, now: float | None = None) -> None:
        self._folders = folders
        self._now = latest_doubtless_time(folders, now) if leases and names_of_leases(folders) else 0.0
        self._with = (leases, pins)
        self._lease_files: _Listing | None = None
        self._pin_files: _Listing | None = None
        self._leased: dict[str, frozenset[str] | None] = {}
        self._pinned: dict[str, frozenset[str] | None] = {}
        self.refresh()

    @property
    def doubts(self) -> list[str]:
        """Files whose keys cannot be known; while there is one, nothing may be removed."""
        leases = [f"{self._folders.leases}/{name}" for name, keys in self._leased.items() if keys is None]
        return leases + [f"{self._folders.pins}/{name}.json" for name, keys in self._pinned.items() if keys is None]

    @property
    def keys(self) -> frozenset[str]:
        """Every key that is known to be needed."""
        return frozenset().union(*(keys for keys in (*self._leased.values(), *self._pinned.values()) if keys))

    def holds(self, key: str) -> bool:
        """Whether the entry `key` must stay, by what is written down at this moment."""
        self.refresh()
        return any(keys is None or key in keys for keys in (*self._leased.values(), *self._pinned.values()))

    def refresh(self) -> None:
        """Reads what has come, and forgets what has gone."""
        with_leases, with_pins = self._with
        folders = self._folders
        if with_leases and (files := _listing(folders.leases)) != self._lease_files:
            self._lease_files = files
            leases = [read_lease(folders, name, self._now) for name in names_of_leases(folders)]
            self._leased = {lease.name: lease.keys for lease in leases if lease is not None}
        if with_pins and (files := _listing(folders.pins)) != self._pin_files:
            self._pin_files = files
            pins = [read_pin(folders, name) for name in names_of_pins(folders)]
            self._pinned = {pin.name: pin.keys for pin in pins if pin is not None}


def _listing(folder: str) -> _Listing:
    """The files of a folder, by name and inode: each is put there by a rename, so another content is another file."""
    try:
        with os.scandir(folder) as entries:
            return frozenset((entry.name, entry.inode()) for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
