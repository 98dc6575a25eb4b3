"""Exit codes: 0 done; 1 the recipe or its inputs are wrong; 2 usage; 3 the run failed; 130 interrupted.

Nobody who makes a mistake sees a traceback. A mistake of ours is said to be one, in a line, with the traceback in a
file (or on the screen with ``MERGEFLOW_DEBUG=1``). What the system refuses (a disk, memory, files) is neither.
"""

from __future__ import annotations

import functools
import os
import tempfile
import traceback
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer

from mergeflow.cli.console import log_warnings_shown, plain, show_error, stderr, styled
from mergeflow.errors import MergeflowError, RunError

P = ParamSpec("P")
T = TypeVar("T")


def guarded(command: Callable[P, T]) -> Callable[P, T]:
    """A command whose errors become a message and an exit code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            with log_warnings_shown():
                return command(*args, **kwargs)
        except MergeflowError as error:
            show_error(error)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt as interrupt:
            stderr().print("; ".join(["interrupted", *map(plain, interrupt.args)]))
            raise typer.Exit(130) from None
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except (MemoryError, OSError) as error:
            if not _is_shown(error):
                show_error(_refusal(error))
            raise typer.Exit(RunError.exit_code) from None
        except Exception as error:
            if not _is_shown(error):
                _report_our_mistake(error)
            raise typer.Exit(RunError.exit_code) from None

    return run


def _refusal(error: MemoryError | OSError) -> RunError:
    """What the system would not give, where no room had a better word for it."""
    if isinstance(error, MemoryError):
        return RunError("not enough memory: give --memory less, or --workers 1")
    where = f": {error.filename}" if error.filename is not None else ""
    return RunError(f"the system reports: {error.strerror or error}{where}")


def _report_our_mistake(error: Exception) -> None:
    message = f"this is a mistake in mergeflow, not in your recipe: {type(error).__name__}: {error}"
    stderr().print(styled(("error:", "bold red"), f" {plain(message)}\n{plain(_what_to_do(error))}"))


def _what_to_do(error: Exception) -> str:
    try:
        with tempfile.NamedTemporaryFile("w", prefix="mergeflow-error-", suffix=".txt", delete=False) as file:
            traceback.print_exception(error, file=file)
    except OSError:
        return "run it again with MERGEFLOW_DEBUG=1 to see where"
    return f"please report it with {file.name}"


def _is_shown(error: BaseException) -> bool:
    """Whether the traceback is on the screen, for whoever asked for it."""
    wanted = bool(os.environ.get("MERGEFLOW_DEBUG"))
    if wanted:
        stderr().print("".join(traceback.format_exception(error)))
    return wanted
