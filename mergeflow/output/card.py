"""The README.md of a merged model: what it is made of, how, and how to make it again.

The front matter is the hub's: `base_model` holds hub ids only, because a path on somebody's disk is not a model there,
and `license` appears only when every input states the same one, in its card or in its config.json. A licence of the
author's own (``other``) counts as the same when its name is, and comes with that name and its link. The text depends
on its arguments alone, so the same merge has the same card.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import yaml


@dataclass(frozen=True, slots=True)
class CardModel:
    """An input: its label in the recipe, its path or id as the user wrote it, and its hub id if it has one."""

    label: str
    path: str
    hub_id: str | None = None
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class CardStep:
    """A step: its name, its method's title, what it merges (labels or steps), its base, and the method's paper."""

    name: str
    method: str
    inputs: tuple[str, ...]
    base: str | None = None
    paper: str = ""


@dataclass(frozen=True, slots=True)
class Card:
    """Everything a model card says.

    Args:
        title: of the page.
        recipe: its text, verbatim.
        version: of mergeflow.
        library: that loads the model (``transformers``); None when the folder says nothing of one.
        license: of the model, when it is known.
        license_name, license_link: of a licence that the hub has no word for (``other``).
        settings: variables given on the command line (``--set``).
        tensors, parameters, bytes: how much the model holds.
    """

    title: str
    models: tuple[CardModel, ...]
    steps: tuple[CardStep, ...]
    recipe: str
    version: str
    library: str | None = "transformers"
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    settings: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    tensors: int = 0
    parameters: int = 0
    bytes: int = 0


def model_card(card: Card) -> str:
    """The text of README.md."""
    sections = [
        f"---\n{_front_matter(card)}---\n\n# {_one_line(card.title)}",
        f"Merged with mergeflow {card.version}: {card.tensors} tensors, {card.parameters:,} parameters, "
        f"{card.bytes:,} bytes.",
        "## Models\n\n" + _table(("name", "model", "revision"), [_model_row(model) for model in card.models]),
        "## Method\n\n" + _table(("step", "method", "merges", "base"), [_step_row(step) for step in card.steps]),
        f"## Recipe\n\n{_fenced(card.recipe, 'yaml')}",
        f"## Make it again\n\nWith mergeflow {card.version}, and the recipe above in `recipe.yaml`:\n\n"
        f"{_fenced(_command(card), 'sh')}\n\n"
        "`mergeflow.lock.json` holds the revisions and digests of the inputs, and a key for every tensor.",
    ]
    return "\n\n".join(sections) + "\n"


def delta_card(card: Card) -> str:
    """The text of README.md beside a delta, which is no model: no front matter that the hub would read as one's."""
    sections = [
        f"# {_one_line(card.title)}",
        f"A delta, not a model: what a merge adds to its base. Written by mergeflow {card.version}: {card.tensors} "
        f"tensors, {card.parameters:,} parameters, {card.bytes:,} bytes. In a recipe it stands wherever a task vector "
        "may.",
        "## Models\n\n" + _table(("name", "model", "revision"), [_model_row(model) for model in card.models]),
        "## Method\n\n" + _table(("step", "method", "merges", "base"), [_step_row(step) for step in card.steps]),
        f"## Recipe\n\n{_fenced(card.recipe, 'yaml')}",
    ]
    return "\n\n".join(sections) + "\n"


@dataclass(frozen=True, slots=True)
class License:
    """A licence as the hub writes it: its word, and for one that the hub has no word for (``other``) name and link."""

    word: str
    name: str | None = None
    link: str | None = None


def license_of(readme: str | None, config: Mapping[str, object] | None = None) -> License | None:
    """The licence that the front matter of a model card states, else its config.json.

    None when neither states one, or one without a name that tells it from others.
    """
    for stated in (_matter_of(readme or ""), config or {}):
        word, name, link = (stated.get(key) for key in ("license", "license_name", "license_link"))
        if isinstance(word, str) and word != "other":
            return License(word)
        if word == "other" and isinstance(name, str):
            return License(word, name, link if isinstance(link, str) else None)
    return None


def agreed_license(licenses: Sequence[License | None]) -> License | None:
    """The licence that all inputs have; None when one has none (that is known), or when they differ."""
    first = licenses[0] if licenses else None
    same = first is not None and all(other == first for other in licenses)
    return first if same else None


def _matter_of(readme: str) -> Mapping[str, object]:
    """The front matter of a model card, empty when it has none that can be read."""
    match = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", readme, re.DOTALL)
    try:
        matter = yaml.safe_load(match.group(1)) if match else None
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a date that is none
        return {}
    return matter if isinstance(matter, dict) else {}


def _front_matter(card: Card) -> str:
    ids = list(dict.fromkeys(model.hub_id for model in card.models if model.hub_id))
    matter: dict[str, object] = {}
    if ids:
        matter |= {"base_model": ids, "base_model_relation": "merge"}
    stated = {"license": card.license, "license_name": card.license_name, "license_link": card.license_link}
    matter |= {key: value for key, value in {**stated, "library_name": card.library}.items() if value}
    matter["tags"] = ["mergeflow", "merge"]
    return yaml.safe_dump(matter, sort_keys=False, allow_unicode=True, default_flow_style=False)


def _model_row(model: CardModel) -> tuple[str, ...]:
    link = f"[{_cell(model.hub_id)}](https://huggingface.co/{model.hub_id})" if model.hub_id else _code(model.path)
    return _cell(model.label), link, _code(model.revision) if model.revision else ""


def _step_row(step: CardStep) -> tuple[str, ...]:
    method = f"[{_cell(step.method)}]({step.paper})" if step.paper.startswith("https://") else _cell(step.method)
    return _cell(step.name), method, ", ".join(map(_cell, step.inputs)), _cell(step.base or "")


def _command(card: Card) -> str:
    settings = "".join(f" --set {shlex.quote(f'{name}={_yaml_value(value)}')}" for name, value in card.settings.items())
    return f"mergeflow run recipe.yaml ./merged{settings}"


def _yaml_value(value: bool | int | float | str) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _fenced(text: str, language: str) -> str:
    """A code block whose fence is longer than any run of backticks in it, so that nothing in it can end it."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _code(text: str) -> str:
    fence = "`" * (_longest_run(text) + 1)
    padding = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{padding}{_one_line(text).replace('|', chr(92) + '|')}{padding}{fence}"


def _cell(text: str) -> str:
    return re.sub(r"([\\|`*_\[\]<>])", r"\\\1", _one_line(text))


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _one_line(text: str) -> str:
    return " ".join(text.split())
