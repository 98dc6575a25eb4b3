"""What `convert` writes, and what it says of it."""

from __future__ import annotations

from pathlib import Path

from mergeflow.cli.console import plain, print_text, show_problems, stdout, styled
from mergeflow.errors import OutputError
from mergeflow.recipe.read import read_recipe
from mergeflow.workflow.converting import convert_recipe


def convert_file(file: Path, out: Path | None, *, force: bool) -> None:
    """Print the native form of a mergekit file, or write it to `out`.

    Raises:
        RecipeError: the file has errors, or cannot be converted.
        OutputError: `out` cannot be written, or is there already.
    """
    recipe = read_recipe(file)
    text = convert_recipe(recipe, Path.cwd() if out is None else Path(out).absolute().parent)
    show_problems(recipe.problems)
    if out is None:
        print_text(text.removesuffix("\n"))
        return
    try:
        with out.open("w" if force else "x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise OutputError(f"{out} is there already; --force writes over it") from None
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from error
    stdout().print(styled((f"{plain(out)} written", "green"), f" from {plain(file)}"))
