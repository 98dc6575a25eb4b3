"""Arguments and flags that several commands have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Recipe_ = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, or any mergekit configuration.")]
Out = Annotated[
    Path | None, typer.Argument(metavar="OUT", help="Folder of the output (default: the one the recipe names).")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Give a variable of the recipe another value.")
]
CacheFolder = Annotated[
    Path | None,
    typer.Option("--cache", metavar="DIR", help="Cache folder (default: $MERGEFLOW_CACHE, else the user's own)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
