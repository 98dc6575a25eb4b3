"""What `export`, `verify` and `lineage` do and say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text
from rich.tree import Tree

from mergeflow.cli.console import plain, stderr, stdout, styled
from mergeflow.cli.progress import ProgressBar, only_warnings
from mergeflow.errors import counted
from mergeflow.output.lineage import LockedModel, lineage_entry
from mergeflow.output.lock import Lock, lineage_of
from mergeflow.workflow.lineage import Line, lines

if TYPE_CHECKING:
    from mergeflow.recipe.records import Recipe
    from mergeflow.workflow.options import Options
    from mergeflow.workflow.verifying import Verification

DIGEST_CHARACTERS = 12


def export_and_show(
    recipe: Recipe,
    step: str,
    out: Path,
    options: Options,
    dtype: str | None,
    max_shard_bytes: int | None,
    report: Path | None,
    *,
    quiet: bool,
) -> None:
    """Export a step with a progress bar, and say how much of it was computed."""
    from mergeflow.cli.reporting import check_report_place, write_report
    from mergeflow.cli.show import show_report
    from mergeflow.workflow.exporting import export_step

    if report is not None:
        check_report_place(report)
    if quiet:
        done = export_step(recipe, step, out, options, only_warnings, dtype=dtype, max_shard_bytes=max_shard_bytes)
    else:
        with ProgressBar() as progress:
            done = export_step(recipe, step, out, options, progress, dtype=dtype, max_shard_bytes=max_shard_bytes)
    if report is not None:
        write_report(report, done)
    if not quiet:
        show_report(done, stdout())


def verify_and_listen(
    out: Path, options: Options, models: Path | None, *, quick: bool, cached: bool, quiet: bool
) -> Verification:
    """Verify an output with a progress bar."""
    from mergeflow.workflow.verifying import verify_output

    if quiet:
        return verify_output(out, options, only_warnings, models=models, quick=quick, cached=cached)
    with ProgressBar() as progress:
        return verify_output(out, options, progress, models=models, quick=quick, cached=cached)


def show_verification(found: Verification) -> None:
    """What differs and what could not be checked on stderr, a line each; what is equal on stdout."""
    console = stderr()
    for fault in found.faults:
        console.print(styled(("differs:", "bold red"), f" {plain(fault)}"))
    for reason in found.missing:
        console.print(styled(("missing:", "yellow"), f" {plain(reason)}"))
    total = counted(found.tensors, "tensor")
    checked = [f"{found.keys} have the keys of their recipe"] if not found.missing else []
    if not found.quick and not found.missing:
        checked.append(f"{found.bytes} were computed again and are the same, byte for byte")
    looked = "headers, samples and small files were looked at" if found.missing else "; ".join(checked)
    verdict = {0: "verified", 1: "not verified: what it was made of is missing", 3: "not what its lock says"}
    stdout().print(plain(f"{found.path}: {verdict[found.exit_code]}; {total}: {looked}"))


def verification_json(found: Verification) -> dict[str, object]:
    """What verifying has shown, as plain data."""
    return {
        "path": found.path,
        "ok": found.exit_code == 0,
        "tensors": {"total": found.tensors, "keys_equal": found.keys, "bytes_equal": found.bytes},
        "quick": found.quick,
        "differences": [asdict(fault) for fault in found.faults],
        "missing": list(found.missing),
    }


def show_lineage(out: Path, lock: Lock) -> None:
    """The tree of steps and inputs."""
    lineage = lineage_of(lock)
    kind = "a delta" if lock.type == "delta" else "weights"
    made = f"  {kind}, {counted(lineage.tensors, 'tensor')} in {counted(len(lock.shards), 'file')}"
    root = Tree(styled((plain(out), "bold"), plain(f"{made}; mergeflow {lock.version}")))
    branches = [root]
    for line in lines(lineage):
        del branches[line.depth + 1 :]
        branches.append(branches[-1].add(_text(line)))
    for text in _settings(lock):
        root.add(styled((plain(text), "dim")))
    stdout().print(root)


def lineage_json(lock: Lock) -> dict[str, object]:
    """How an output was made, as plain data: the recipe, its inputs, and theirs."""
    return lineage_entry(lineage_of(lock))


def _settings(lock: Lock) -> Iterator[str]:
    if lock.variables:
        yield "variables: " + ", ".join(f"{name}={value}" for name, value in lock.variables.items())
    if lock.seed is not None:
        yield f"seed: {lock.seed}"


def _text(line: Line) -> Text:
    if line.made is not None:
        tensors = counted(line.made.tensors, "tensor")
        return styled(plain(f"made by mergeflow {line.made.version}, {tensors}, from"))
    if line.model is not None:
        return styled((plain(line.name), "cyan"), plain(_input(line.name, line.model)))
    more = " (as above)" if line.repeated else f" = {line.text}"
    return styled((plain(line.name), "bold"), plain(more))


def _input(name: str, model: LockedModel) -> str:
    """Where an input was, at which commit, with which adapters, and its digest."""
    revision = f"@{model.revision}" if model.revision is not None else ""
    where = f": {model.path}{revision}" if name != model.path or revision else ""
    adapters = [
        f"+ adapter {it.path}{f'@{it.revision}' if it.revision else ''} x {it.weight:g}" for it in model.adapters
    ]
    digest = f"  digest {model.digest[:DIGEST_CHARACTERS]}" if model.digest else ""
    return " ".join([where, *adapters]).rstrip() + digest
