"""Reasons why something must run: single ones, and those of many tensors summed up in a few lines.

skills.models[0].parameters.density 0.5 -> 0.4 (44 tensors)
math/model-00002.safetensors changed: 3 of 9 tensors
method ties is now version 2 (operation trim)
because skills changed: skills.models[0].parameters.density 0.5 -> 0.4 (44 tensors)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mergeflow.errors import counted

# What is not the recipe's doing counts its tensors itself, or concerns all of them.
ReasonKind = Literal[
    "parameter", "setting", "file", "version", "seed", "digest", "first", "output", "cache", "carried", "other"
]
UNCOUNTED = ("file", "first", "digest")
COUNT = " ("
SHOWN = 4


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason.

    Args:
        kind: ``parameter`` has an `old` and a `new` value of `about`, the path where a user would change it; the text
            of all others is `about`.
        setting: the whole setting behind a parameter, before and now, where it was written otherwise: what stands for
            the many values of a gradient.
    """

    kind: ReasonKind
    about: str
    old: str = ""
    new: str = ""
    setting: tuple[str, str] | None = None

    def __str__(self) -> str:
        return f"{self.about} {self.old} -> {self.new}" if self.kind == "parameter" else self.about


@dataclass(frozen=True, slots=True)
class Causes:
    """Why one value is another than in the last run: what happened to it, and to the steps that it reads.

    Args:
        upstream: for each step that is read and has changed, what happened there, or further up.
    """

    own: tuple[Reason, ...] = ()
    upstream: tuple[tuple[str, tuple[Reason, ...]], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.own or self.upstream)

    def lines(self) -> list[str]:
        """One line for each, most specific first."""
        above = [f"because {step} changed: {_some(map(str, reasons))}" for step, reasons in self.upstream]
        return [*map(str, self.own), *above]


NOTHING = Causes()


def summed_up(causes: Sequence[Causes]) -> tuple[str, ...]:
    """The causes of many tensors in a few lines, each with how many tensors it concerns."""
    # What is only carried along runs because the rest does.
    causes = [it for it in causes if not _is_carried(it)] or causes
    own = [reason for it in causes for reason in it.own]
    lines = list(_grouped(own))
    above: dict[str, list[tuple[Reason, ...]]] = {}
    for it in causes:
        for step, reasons in it.upstream:
            above.setdefault(step, []).append(reasons)
    for step, roots in above.items():
        texts = [line.partition(COUNT)[0] for line in _grouped(reason for reasons in roots for reason in reasons)]
        lines.append(f"because {step} changed: {_some(texts)}{COUNT}{counted(len(roots), 'tensor')})")
    more = len(lines) - SHOWN
    return tuple([*lines[:SHOWN], f"and {counted(more, 'more reason')}"] if more > 0 else lines)


def _is_carried(causes: Causes) -> bool:
    return not causes.upstream and all(reason.kind == "carried" for reason in causes.own)


def _grouped(reasons: Iterable[Reason]) -> Iterable[str]:
    """A line for each thing that reasons are about, in the order of the first of them."""
    groups: dict[tuple[str, str], dict[Reason, int]] = {}
    for reason in reasons:
        counts = groups.setdefault((reason.kind, reason.about), {})
        counts[reason] = counts.get(reason, 0) + 1
    for (kind, about), counts in groups.items():
        total = "" if kind in UNCOUNTED else f"{COUNT}{counted(sum(counts.values()), 'tensor')})"
        yield _text(about, counts) + total


def _text(about: str, counts: Mapping[Reason, int]) -> str:
    """One reason for all, or, where they resolved to several values, the settings behind them."""
    first = next(iter(counts))
    if first.kind != "parameter" or len(counts) == 1:
        return str(first)
    settings = {reason.setting for reason in counts}
    setting = settings.pop() if len(settings) == 1 else None
    return f"{about} {setting[0]} -> {setting[1]}" if setting is not None else f"{about} resolves to other values"


def _some(texts: Iterable[str]) -> str:
    found = list(dict.fromkeys(texts))
    more = len(found) - SHOWN
    return ", ".join(found[:SHOWN]) + (f" and {more} more" if more > 0 else "")
