"""Exit codes: 0 done; 1 the recipe or its inputs are wrong; 2 usage; 3 the run failed; 130 interrupted.

Nobody who makes a mistake sees a traceback. A mistake of ours is said to be one, in a line, with the traceback in a
file (or on the screen with ``MERGEFLOW_DEBUG=1``).
"""

from __future__ import annotations

import functools
import os
import tempfile
import traceback
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer

from mergeflow.cli.console import show_error, stderr
from mergeflow.errors import MergeflowError

P = ParamSpec("P")
T = TypeVar("T")


def guarded(command: Callable[P, T]) -> Callable[P, T]:
    """A command whose errors become a message and an exit code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except MergeflowError as error:
            show_error(error)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            stderr().print("interrupted; nothing was published, what was completed is used by the next run")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            os._exit(0)  # the reader of our output has gone: there is nobody left to tell
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except Exception as error:
            _report_our_mistake(error)
            raise typer.Exit(3) from None

    return run


def _report_our_mistake(error: Exception) -> None:
    if os.environ.get("MERGEFLOW_DEBUG"):
        traceback.print_exc()
        return
    with tempfile.NamedTemporaryFile("w", prefix="mergeflow-error-", suffix=".txt", delete=False) as file:
        traceback.print_exc(file=file)
    stderr().print(
        f"[bold red]error:[/] this is a mistake in mergeflow, not in your recipe: {type(error).__name__}: {error}\n"
        f"please report it with {file.name}",
        markup=True,
    )
