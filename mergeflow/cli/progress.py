"""The progress bar of a run: tensors done, bytes moved, GB/s and time left, drawn from the event stream."""

from __future__ import annotations

from types import TracebackType

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from mergeflow.cli.console import show_warning, stderr
from mergeflow.execute.events import (
    BytesMoved,
    CandidateStarted,
    Event,
    PhaseFinished,
    PhaseStarted,
    TensorsDone,
    Warned,
)

_TITLES = {"digest": "reading inputs", "merge": "merging", "download": "downloading", "verify": "verifying"}


class ProgressBar:
    """A listener that draws on a terminal, and shows warnings wherever stderr leads.

    A context manager; rich's own lock makes it safe to call from several threads.
    """

    def __init__(self) -> None:
        console = stderr()
        self._is_drawn = console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description:>14}"),
            BarColumn(),
            TextColumn("{task.fields[tensors]}"),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not self._is_drawn,
        )
        self._current: TaskID | None = None
        self._tensors = (0, 0)
        self._candidate = ""

    def __enter__(self) -> ProgressBar:
        if self._is_drawn:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_drawn:
            self._progress.stop()

    def __call__(self, event: Event) -> None:
        match event:
            case PhaseStarted(name, total_bytes, total_tensors) if name in _TITLES:
                self._tensors = (0, total_tensors)
                self._current = self._progress.add_task(
                    self._candidate + _TITLES[name], total=total_bytes or None, tensors=self._tensors_text()
                )
            case CandidateStarted(_, number, total):
                self._candidate = f"{number} of {total}: "
            case PhaseFinished():
                if self._current is not None:
                    self._progress.remove_task(self._current)
                    self._current = None
            case BytesMoved(read, written) if self._current is not None:
                self._progress.advance(self._current, read + written)
            case TensorsDone(_, tensors) if self._current is not None:
                self._tensors = (self._tensors[0] + len(tensors), self._tensors[1])
                self._progress.update(self._current, tensors=self._tensors_text())
            case Warned(message):
                show_warning(message)
            case _:
                pass

    def _tensors_text(self) -> str:
        done, total = self._tensors
        return f"{done}/{total} tensors" if total else ""


def only_warnings(event: Event) -> None:
    """A listener that shows warnings and nothing else."""
    if isinstance(event, Warned):
        show_warning(event.message)
