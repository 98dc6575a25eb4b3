"""Where the command line writes: results to stdout, everything else to stderr, colour only where it is wanted.

rich leaves colour out when the stream is not a terminal or ``NO_COLOR`` is set. Its other ideas of text are kept from
what we print: ``[words]`` in a path are no markup, ``:100:`` in ``recipe.yaml:100:3`` is no emoji, a name out
of a stranger's file sends nothing to the terminal but letters (`plain`), and a table that a program reads is not
squeezed into 80 columns.

A reader that has gone (``mergeflow plan recipe.yaml | head -1``) is no failure: what is left to say is dropped, and the
exit code is that of the work.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from typing import IO, TextIO, cast

from rich.console import Console
from rich.text import Text

from mergeflow.errors import MergeflowError, Problem, RecipeError, RunError

# Wider than any table of ours: what a program reads (or a file keeps) is not wrapped.
WIDE = 1000

_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {9: "\\t", 10: "\\n", 13: "\\r"}


class Output:
    """A stream whose reader may go away: from then on what is written to it is dropped.

    Args:
        must_arrive: any other failure (a full disk) is an error. Of stderr there is nowhere to complain.
    """

    def __init__(self, stream: TextIO, *, must_arrive: bool = True) -> None:
        self._stream = stream
        self._must_arrive = must_arrive

    @property
    def encoding(self) -> str:
        return self._stream.encoding

    def write(self, text: str) -> int:
        with self._dropping():
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                encoding = self._stream.encoding
                self._stream.write(text.encode(encoding, errors="backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        with self._dropping():
            self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            self._lead_nowhere()
        except OSError as error:
            self._lead_nowhere()
            if self._must_arrive:
                raise RunError(f"cannot write to stdout: {error.strerror or error}") from error

    def _lead_nowhere(self) -> None:
        """Python writes what is left once more at its end, which must not fail again."""
        with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())


def stdout() -> Console:
    """For results."""
    return _console(Output(sys.stdout) if sys.stdout is not None else None)


def stderr() -> Console:
    """For errors, warnings and progress."""
    return _console(Output(sys.stderr, must_arrive=False) if sys.stderr is not None else None)


def print_text(text: str) -> None:
    """Text on stdout as it is."""
    if sys.stdout is not None:
        output = Output(sys.stdout)
        output.write(text + "\n")
        output.flush()


def print_json(value: object) -> None:
    """Plain data on stdout, as JSON."""
    print_text(json.dumps(value, indent=2))


def plain(text: object) -> str:
    """`text` on one line, with control characters (and what is no Unicode) as escapes."""
    return str(text).translate(_ESCAPES).encode("utf-8", errors="backslashreplace").decode("utf-8")


def styled(*parts: str | tuple[str, str]) -> Text:
    """A line of parts, some of them with a style of rich's: ``("error:", "bold red")``."""
    return Text.assemble(*parts)


def show_error(error: MergeflowError) -> None:
    """An error as ``file:line:col: error: ...``, every problem of a recipe on a line of its own."""
    if isinstance(error, RecipeError):
        show_problems(error.problems)
    else:
        stderr().print(styled(("error:", "bold red"), f" {plain(error)}"))


def show_problems(problems: Sequence[Problem]) -> None:
    """Problems, a line each, on stderr."""
    console = stderr()
    for problem in problems:
        colour = "bold red" if problem.severity == "error" else "yellow"
        where = f"{problem.position}: " if problem.position else ""
        path = f"{problem.path}: " if problem.path else ""
        console.print(styled(plain(where), (f"{problem.severity}:", colour), f" {plain(path + problem.message)}"))


def show_warning(message: str) -> None:
    """One warning on stderr, above the progress bar when one is drawn. A problem's own text says where it is."""
    text = message if "warning: " in message else f"warning: {message}"
    stderr().print(styled((plain(text), "yellow")))


@contextlib.contextmanager
def log_warnings_shown() -> Iterator[None]:
    """What the rooms log as warnings is shown as such while the block runs."""
    logger, handler = logging.getLogger("mergeflow"), _Shown(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Shown(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        show_warning(record.getMessage())


def _console(output: Output | None) -> Console:
    """A console that writes to `output`; to nothing when the stream was closed before we started."""
    file = cast("IO[str] | None", output)
    console = Console(file=file, quiet=output is None, markup=False, emoji=False, highlight=False, soft_wrap=True)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDE
    return console
