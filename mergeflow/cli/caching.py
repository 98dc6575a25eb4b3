"""What the `cache` commands say."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import typer

from mergeflow.cache.care import Usage, clear, entries, usage
from mergeflow.cache.open import open_cache
from mergeflow.cli.console import print_json, print_text
from mergeflow.cli.units import size_text
from mergeflow.errors import counted


def list_entries(folder: Path, *, as_json: bool) -> None:
    """A line per entry."""
    for entry in entries(open_cache(folder)):
        operation = str(entry.about.get("op", "?"))
        if as_json:
            line = {"key": entry.key, "kind": entry.kind, "op": operation, "bytes": entry.nbytes}
            print_text(json.dumps(line))
        else:
            print_text(f"{entry.key}  {entry.kind:6}  {operation:14}  {size_text(entry.nbytes)}")


def show_usage(folder: Path, *, as_json: bool) -> None:
    """Counts and bytes."""
    used = usage(open_cache(folder))
    if as_json:
        print_json({"folder": str(folder), **asdict(used)})
        return
    print_text(str(folder))
    print_text(f"{counted(used.tensors, 'tensor')}, {size_text(used.tensor_bytes)}")
    print_text(f"{counted(used.records, 'statistic')}, {size_text(used.record_bytes)}")
    if used.damaged:
        print_text(f"{used.damaged} damaged, which count as missing")


def clear_entries(folder: Path, *, ask: bool) -> None:
    """Empty the cache, after asking."""
    store = open_cache(folder)
    if ask:
        used = usage(store)
        if used.entries or used.damaged:
            typer.confirm(f"remove {_entries(used)} ({size_text(used.nbytes)}) from {folder}?", abort=True)
    removed = clear(store)
    print_text(f"removed {_entries(removed)}, {size_text(removed.nbytes)}")


def _entries(used: Usage) -> str:
    return "1 entry" if used.entries == 1 else f"{used.entries} entries"
