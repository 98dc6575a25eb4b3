"""mergekit-yaml's options (and mergekit-multi's), as `mergeflow run` takes them, so that a script runs as it is.

A table: each option is one of ours under another name (`sets`), or has nothing to do here, and then one warning says
what replaces it; one that would change the result in silence is refused, with what to do instead. What is given under
our own name counts more. `--help` lists those that do something; docs/mergekit.md has all of them. `--device`,
`--quiet`, `--out-shard-size` and `--random-seed` are options of `run` itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import typer
from typer.core import TyperCommand, TyperOption

from mergeflow.cli.console import show_warning

if TYPE_CHECKING:
    from mergeflow.recipe.records import Recipe

PANEL = "mergekit's options"


@dataclass(frozen=True, slots=True)
class MergekitOption:
    """One option of mergekit's.

    `help` says what it is here. `sets` is the parameter of `run` it stands for, `values` what a flag and its ``--no-``
    form mean for it. `replaced` is what a warning says when it is given, `replaced_off` when its ``--no-`` form is,
    `refused` what an error says. Empty: it is taken without a word.
    """

    flags: str
    help: str
    takes: Literal["flag", "pair", "text", "integer", "count"] = "pair"
    sets: str = ""
    values: tuple[str, str] | None = None
    replaced: str = ""
    replaced_off: str = ""
    refused: str = ""

    @property
    def name(self) -> str:
        """The long form, as in messages."""
        return self.flags.split()[0]

    @property
    def key(self) -> str:
        """Its name among the parameters of the command."""
        return "mergekit_" + self.name.strip("-").replace("-", "_")


_CUDA = ("cuda", "cpu")
_STREAMED = "tensors are streamed in blocks that --memory bounds"
_DEVICES = "give --device, and --scheduler for more workers"

MERGEKIT_OPTIONS = (
    MergekitOption("--cuda", "The same as `--device cuda`, for GPUs.", sets="device", values=_CUDA),
    MergekitOption("--gpu-rich", "The same as `--device cuda`, for GPUs.", "flag", sets="device", values=_CUDA),
    MergekitOption("--num-threads -j", "The same as --workers: tasks at a time.", "integer", sets="workers"),
    MergekitOption("--out-path", "The same as OUT, as mergekit-multi has it.", "text", sets="out"),
    MergekitOption(
        "--intermediate-dir -I",
        "Not needed: results between the steps are not written.",
        "text",
        replaced="results between the steps are not written; the cache (--cache DIR) keeps what is worth it",
    ),
    MergekitOption(
        "--lazy",
        "Not needed: nothing is computed twice, nothing stale is used.",
        replaced_off="what was computed from the same inputs is never stale; --no-cache computes it again",
    ),
    MergekitOption(
        "--lora-merge-cache",
        "Not needed: adapters are added while tensors are read.",
        "text",
        replaced="adapters are added while tensors are read, without a merged copy",
    ),
    MergekitOption(
        "--lora-merge-dtype",
        "Not needed: adapters are added in float64.",
        "text",
        replaced="adapters are added in float64, without a merged copy",
    ),
    MergekitOption("--lazy-unpickle", "Not needed: .bin files are always read tensor by tensor."),
    MergekitOption("--low-cpu-memory", "Not needed: see --memory.", replaced=_STREAMED),
    MergekitOption("--read-to-gpu", "Not needed: see --device.", replaced=f"{_STREAMED}; {_DEVICES}"),
    MergekitOption("--multi-gpu", "Not needed: see --device and --scheduler.", replaced=_DEVICES),
    MergekitOption("--async-write", "Not needed: shards are always written while others are computed."),
    MergekitOption(
        "--write-threads",
        "Not needed: each shard has its own writer.",
        "integer",
        replaced="tasks write the tensors they compute; --workers says how many there are",
    ),
    MergekitOption(
        "--copy-tokenizer",
        "The tokenizer is always written with the model.",
        replaced_off="the tokenizer is always written; leave its files out when you copy the model",
    ),
    MergekitOption("--clone-tensors", "Not needed: tensors never share memory."),
    MergekitOption(
        "--write-model-card",
        "The model card is always written with the model.",
        replaced_off="the model card (README.md) is always written",
    ),
    MergekitOption(
        "--safe-serialization",
        "Weights are always written as safetensors.",
        replaced_off="weights are always written as safetensors, never as pickles",
    ),
    MergekitOption(
        "--allow-crimes",
        "Not needed: tensors are matched by their names, whatever the architecture.",
        replaced="not needed: tensors are matched by their names, whatever the architecture is called",
    ),
    MergekitOption(
        "--trust-remote-code",
        "Not needed: code of a model is copied, never run.",
        replaced="not needed: code of a model is copied, never run",
    ),
    MergekitOption(
        "--transformers-cache",
        "Set the environment variable HF_HUB_CACHE instead.",
        "text",
        replaced="models are kept where huggingface_hub keeps them: set HF_HUB_CACHE instead",
    ),
    MergekitOption("--verbose -v", "Without effect: progress and warnings are always shown.", "count"),
    MergekitOption(
        "--unsafe-truncate-embeddings",
        "Refused: rows of a vocabulary are never cut off in silence.",
        refused="rows of a vocabulary are never cut off: say in the recipe which tokens the result has "
        "(tokenizer: {source: base}, union, or a model), and rows are matched by token",
    ),
)


class RunCommand(TyperCommand):
    """`run`, with mergekit's options beside its own."""

    def __init__(self, name: str | None, *, params: list[Any] | None = None, **settings: Any) -> None:
        options: list[Any] = [_option(row) for row in MERGEKIT_OPTIONS]
        super().__init__(name, params=[*(params or []), *options], **settings)

    def invoke(self, ctx: Any) -> Any:
        """Give `run` what mergekit's options stand for."""
        for row in MERGEKIT_OPTIONS:
            value = ctx.params.pop(row.key, None)
            if ctx.get_parameter_source(row.key).name == "COMMANDLINE":
                _apply(row, value, ctx)
        return super().invoke(ctx)


def _option(row: MergekitOption) -> TyperOption:
    long, *short = row.flags.split()
    declared = f"{long}/--no-{long.removeprefix('--')}" if row.takes == "pair" else long
    return TyperOption(
        param_decls=[row.key, declared, *short],
        type={"text": str, "integer": int}.get(row.takes),
        is_flag=True if row.takes in ("pair", "flag") else None,
        count=row.takes == "count",
        default=None if row.takes in ("text", "integer") else 0 if row.takes == "count" else False,
        help=row.help,
        hidden=not row.sets,
        rich_help_panel=PANEL,
    )


def _apply(row: MergekitOption, value: Any, ctx: Any) -> None:
    """What one option, as it was given, means for `run`."""
    given = row.name if value is not False else f"--no-{row.name.removeprefix('--')}"
    if row.refused and value is not False:
        raise typer.BadParameter(f"{given}: {row.refused}")
    if row.sets and ctx.get_parameter_source(row.sets).name != "COMMANDLINE":
        ctx.params[row.sets] = _our_value(row, value)
    message = row.replaced_off if value is False else row.replaced
    if message:
        show_warning(f"{given}: {message}")


def _our_value(row: MergekitOption, value: Any) -> object:
    from pathlib import Path

    if row.values is not None:
        return row.values[0 if value else 1]
    if row.takes == "integer" and value < 1:
        raise typer.BadParameter(f"{row.name} is at least 1, not {value}")
    return Path(value) if row.sets == "out" else value


def with_mergekit_settings(recipe: Recipe, shard_size: str | None, seed: int | None) -> Recipe:
    """The recipe with ``--out-shard-size`` for every output and with ``--random-seed`` for its seed.

    Raises:
        BadParameter: the size is none, or the seed is negative.
    """
    from dataclasses import replace

    from mergeflow.recipe.native import LARGEST_SEED
    from mergeflow.recipe.sizes import parse_size

    if shard_size is not None:
        try:
            most = parse_size(shard_size)
        except ValueError as error:
            raise typer.BadParameter(f"--out-shard-size: {error}") from error
        recipe = _for_each(
            recipe, lambda it: replace(it, outputs=tuple(replace(one, max_shard_bytes=most) for one in it.outputs))
        )
    if seed is not None:
        if not 0 <= seed <= LARGEST_SEED:
            raise typer.BadParameter("--random-seed is an integer from 0 to 2**64 - 1")
        recipe = _for_each(recipe, lambda it: replace(it, seed=seed))
    return recipe


def _for_each(recipe: Recipe, change: Callable[[Recipe], Recipe]) -> Recipe:
    """A recipe changed, and each candidate of its sweep."""
    from dataclasses import replace

    return replace(change(recipe), candidates=tuple(map(change, recipe.candidates)))
