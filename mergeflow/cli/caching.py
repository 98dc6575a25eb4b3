"""What the `cache` commands do and say, but for pins."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from dataclasses import asdict

import typer

from mergeflow.cache.care import Usage, clear, usage_of, verify
from mergeflow.cache.collecting import Collected, Unwanted, collect
from mergeflow.cache.index import Listed, totals_of
from mergeflow.cache.limit import Removed, by_last_use, limit_of, remove
from mergeflow.cache.pins import read_pins
from mergeflow.cache.protection import Protection
from mergeflow.cli.cache_selection import Selection, last_used
from mergeflow.cli.console import plain, print_json, print_text, show_warning
from mergeflow.cli.progress import ProgressBar, only_warnings
from mergeflow.cli.units import size_text
from mergeflow.errors import CacheError, RunError, counted, some
from mergeflow.execute.events import BytesMoved, PhaseFinished, PhaseStarted


def list_entries(selection: Selection, sort: str, *, as_json: bool) -> None:
    """A line per entry; as JSON, an object per line."""
    cache = selection.cache
    pinned = _pinned(selection)
    entries = selection.entries()
    used = {entry.key: last_used(cache, entry.key) for entry in entries}
    if sort == "used":
        entries.sort(key=lambda entry: (-used[entry.key], entry.key))
    elif sort == "size":
        entries.sort(key=lambda entry: (-entry.nbytes, entry.key))
    for entry in entries:
        moment, pins = used[entry.key], pinned.get(entry.key, [])
        if as_json:
            line = {"key": entry.key, "kind": entry.kind, "op": entry.operation, "bytes": entry.nbytes}
            print_text(json.dumps({**line, "last_used": _utc(moment), "pinned_by": pins}))
        else:
            text = f"{entry.key}  {entry.kind:7}  {entry.operation:14}  {size_text(entry.nbytes):>8}  {_local(moment)}"
            print_text(plain("  ".join([text, *pins])))


def show_usage(selection: Selection, *, as_json: bool) -> None:
    """Counts and bytes per kind and per step, and the limit."""
    used = usage_of(selection.totals())
    on_disk = selection.contents.taken
    limit = limit_of(selection.cache, selection.options.cache_limit, on_disk)
    steps = _per_step(selection)
    if as_json:
        by_step = {step: asdict(of) for step, of in steps.items()}
        details = {"disk_bytes": on_disk, "limit": limit, "steps": by_step}
        print_json({"folder": str(selection.folder), **asdict(used), **details})
        return
    print_text(str(selection.folder))
    print_text(f"{counted(used.tensors, 'tensor')}, {size_text(used.tensor_bytes)}")
    print_text(f"{counted(used.records, 'statistic')}, {size_text(used.record_bytes)}")
    if used.damaged:
        print_text(f"{used.damaged} damaged, which count as missing: mergeflow cache gc removes them")
    for step, of in steps.items():
        parts = f"{counted(of.tensors, 'tensor')}, {counted(of.records, 'statistic')}, {size_text(of.nbytes)}"
        print_text(plain(f"  step {step}: {parts}"))
    whose = "--cache-limit" if selection.options.cache_limit is not None else "a share of the disk"
    print_text(f"on the disk {size_text(on_disk)}, limit {size_text(limit)} ({whose})")


def verify_entries(selection: Selection, *, remove: bool, as_json: bool) -> int:
    """Read every byte; returns the exit code."""
    entries = selection.entries()
    total = sum(entry.nbytes for entry in entries)
    with ProgressBar() as progress:
        listen = only_warnings if as_json else progress
        began = time.perf_counter()
        listen(PhaseStarted("verify", total))
        keys = [entry.key for entry in entries]
        damaged = {error.key: error.reason for error in verify(selection.cache, keys, lambda n: listen(BytesMoved(n)))}
        listen(PhaseFinished("verify", time.perf_counter() - began))
    if remove:
        for key in damaged:
            selection.cache.discard(key)
    if as_json:
        print_json({"entries": len(entries), "bytes": total, "damaged": damaged, "removed": remove and bool(damaged)})
    else:
        for key, reason in damaged.items():
            print_text(plain(f"{key}  {reason}"))
        what = "none damaged" if not damaged else f"{len(damaged)} damaged" + (" and removed" if remove else "")
        print_text(f"read {_entries(len(entries))}, {size_text(total)}: {what}")
        if damaged and not remove:
            print_text("they count as missing; remove them with --remove")
    return RunError.exit_code if damaged and not remove else 0


def collect_garbage(selection: Selection, *, dry_run: bool, as_json: bool) -> None:
    """Remove what is broken, abandoned, unwanted or over the limit, and say what."""
    keep = selection.keys.all if selection.keys is not None else None
    unwanted = Unwanted(selection.unused_since, keep)
    limit = selection.options.cache_limit
    done = collect(selection.cache, limit, selection.index, unwanted, dry_run=dry_run)
    _warn_of_doubts(done.doubts)
    if as_json:
        kinds = {"damaged": done.damaged, "unwanted": done.unwanted, "over_limit": done.over}
        removed = {name: {"entries": of.count, "bytes": of.nbytes} for name, of in kinds.items()}
        rest = {"leftovers": done.leftovers, "needed": done.needed, "disk_bytes": done.left, "limit": done.limit}
        print_json({"dry_run": dry_run, "removed": removed, **rest})
        return
    verb = "would remove" if dry_run else "removed"
    for line in _collected(done):
        print_text(f"{verb} {line}")
    needed = f", {_entries(done.needed)} pinned or needed by runs under way" if done.needed else ""
    print_text(f"on the disk {size_text(done.left)}, limit {size_text(done.limit)}{needed}")


def clear_entries(selection: Selection, *, force: bool, ask: bool) -> None:
    """Remove what is selected, after asking.

    Raises:
        CacheError: the folder is no cache, or a run that is under way needs some of it; nothing was removed.
    """
    cache = selection.cache
    folders = cache.folders
    entries = selection.entries()
    if entries and not folders.is_ours():
        clear(cache)  # refuses, and says why
    pins = Protection(folders, leases=False, pins=not force)
    going = [entry for entry in entries if not pins.holds(entry.key)]
    _warn_of_doubts(tuple(pins.doubts))
    if not force:
        _refuse_if_leased(selection, going)
    used = usage_of(totals_of(going))
    if ask and going:
        count = _entries(len(going))
        typer.confirm(f"remove {count} ({size_text(used.nbytes)}) from {selection.folder}?", abort=True)
    if selection.is_everything and len(going) == len(entries):
        removed = clear(cache)  # and what is no entry, but lies where entries do
        print_text(f"removed {_entries(removed.entries)}, {size_text(removed.nbytes)}")
        return
    # Asked again before each removal: a run may have begun since.
    protection = Protection(folders, leases=not force, pins=not force)
    done = remove(folders, by_last_use(folders, going, ()), protection)
    gone = usage_of(totals_of(entry for entry in going if entry.key in done.keys))
    print_text(f"removed {_entries(done.count)}, {size_text(gone.nbytes)}")
    if len(entries) > len(going):
        kept = len(entries) - len(going)
        print_text(f"{_entries(kept)} {'is' if kept == 1 else 'are'} pinned and stay (--force removes them too)")


def _refuse_if_leased(selection: Selection, going: list[Listed]) -> None:
    leases = Protection(selection.cache.folders, pins=False)
    doubts = leases.doubts
    leased = leases.keys
    needed = sum(1 for entry in going if entry.key in leased)
    if going and doubts:
        raise CacheError(f"a run may be under way that needs it: {doubts[0]} cannot be read; delete it, or use --force")
    if needed:
        raise CacheError(
            f"a run that is under way needs {needed} of these {_entries(len(going))}; "
            "wait for it, or use --force (it then computes them again)"
        )


def _warn_of_doubts(doubts: tuple[str, ...]) -> None:
    if doubts:
        show_warning(f"nothing is removed while it is not known what these keep: {some(doubts)}; delete them")


def _collected(done: Collected) -> list[str]:
    kinds = {"damaged": done.damaged, "not wanted any more": done.unwanted, "over the limit": done.over}
    lines = [f"{_entries(of.count)} {what}, {_on_disk(of)}" for what, of in kinds.items() if of.count]
    if done.leftovers:
        lines.append(f"{counted(done.leftovers, 'leftover')} of runs that were killed")
    return lines or ["nothing"]


def _on_disk(removed: Removed) -> str:
    return f"{size_text(removed.nbytes)} on the disk"


def _per_step(selection: Selection) -> dict[str, Usage]:
    if selection.keys is None:
        return {}
    entries, steps = selection.entries(), selection.keys.steps
    return {step: usage_of(totals_of(it for it in entries if it.key in keys)) for step, keys in steps.items()}


def _pinned(selection: Selection) -> dict[str, list[str]]:
    """The names of the pins of each key."""
    found: dict[str, list[str]] = defaultdict(list)
    for pin in read_pins(selection.cache.folders):
        for key in pin.keys or ():
            found[key].append(pin.name)
    return found


def _entries(count: int) -> str:
    return counted(count, "entry", "entries")


def _local(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))


def _utc(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))
