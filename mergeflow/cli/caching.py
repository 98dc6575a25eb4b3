"""What the `cache` commands say."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import typer

from mergeflow.cache.care import clear, entries, usage
from mergeflow.cache.store import Cache
from mergeflow.cli.units import size_text


def list_entries(folder: Path, *, as_json: bool) -> None:
    """A line per entry."""
    for entry in entries(Cache(folder)):
        operation = str(entry.about.get("op", "?"))
        if as_json:
            line = {"key": entry.key, "kind": entry.kind, "op": operation, "bytes": entry.nbytes}
            typer.echo(json.dumps(line))
        else:
            typer.echo(f"{entry.key}  {entry.kind:6}  {operation:14}  {size_text(entry.nbytes)}")


def show_usage(folder: Path, *, as_json: bool) -> None:
    """Counts and bytes."""
    used = usage(Cache(folder))
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), **asdict(used)}, indent=2))
        return
    typer.echo(f"{folder}")
    typer.echo(f"{used.tensors} tensors, {size_text(used.tensor_bytes)}")
    typer.echo(f"{used.records} statistics, {size_text(used.record_bytes)}")
    if used.damaged:
        typer.echo(f"{used.damaged} damaged entries, which count as missing")


def clear_entries(folder: Path, *, ask: bool) -> None:
    """Empty the cache, after asking."""
    store = Cache(folder)
    if ask:
        used = usage(store)
        typer.confirm(f"remove {used.entries} entries ({size_text(used.nbytes)}) from {folder}?", abort=True)
    removed = clear(store)
    typer.echo(f"removed {removed.entries} entries, {size_text(removed.nbytes)}")
