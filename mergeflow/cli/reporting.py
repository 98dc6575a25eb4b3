"""The file that ``--report`` names: whether it can be written is asked before a run, and not after an hour of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from mergeflow.errors import OutputError, RunError
from mergeflow.workflow.report import RunReport


def check_report_place(path: Path) -> None:
    """See to it that a report can be written to `path`. Folders that are missing are made when it is written.

    Raises:
        OutputError: it is a folder, or stands where nothing can be written.
    """
    if path.is_dir():
        raise OutputError(f"--report {path} is a folder: name a file in it, such as {path / 'report.json'}")
    folder = Path(os.path.abspath(path)).parent
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise OutputError(f"cannot write the report {path}: {folder} is not a folder")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise OutputError(f"cannot write the report {path}: no permission")


def write_report(path: Path, report: RunReport) -> None:
    """Write what a run did, as JSON.

    Raises:
        RunError: the disk refuses. The run itself was done.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        reason = error.strerror or error
        raise RunError(f"the outputs are written, but the report {path} cannot be: {reason}") from error
