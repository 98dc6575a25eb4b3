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
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE[,VALUE]", help="Give a variable of the recipe another value, or sweep several."
    ),
]
CacheFolder = Annotated[
    str | None,
    typer.Option(
        "--cache",
        metavar="DIR|URL",
        help="Cache: a folder, or a shared one such as s3://bucket/prefix (default: $MERGEFLOW_CACHE, else your own).",
    ),
]
CacheLimit = Annotated[
    str | None,
    typer.Option(
        "--cache-limit",
        metavar="SIZE",
        help="The most the cache takes, such as 50GB; then what was used least goes (default: $MERGEFLOW_CACHE_LIMIT, "
        "else a quarter of the disk, less when under a tenth of it would stay free).",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
