"""The name a mistyped one was meant to be, and how names and values are quoted in messages.

`difflib`'s ratio is 2 x matching characters / all characters: 0.6 accepts ``densty`` for ``density`` and ``bf16``
for ``bfloat16``, and refuses names that merely share letters.
"""

from __future__ import annotations

from collections.abc import Iterable

CUTOFF = 0.6
# Comparing is quadratic in the length; nobody mistypes a name this long, but a broken file may hold one.
LONGEST = 100
SHOWN = 60


def nearest(name: str, choices: Iterable[str], cutoff: float = CUTOFF) -> str | None:
    """The one of `choices` most like `name`, None when none is close. A difference in case alone is always close."""
    from difflib import get_close_matches  # 15 ms to import, and only a mistake needs it

    names = list(choices)
    if len(name) > LONGEST:
        return None
    same_letters = [choice for choice in names if choice.lower() == name.lower()]
    close = same_letters or get_close_matches(name, names, n=1, cutoff=cutoff)
    return close[0] if close else None


def did_you_mean(name: str, choices: Iterable[str], those: str) -> str:
    """How a message about an unknown `name` ends: the nearest of `choices`, or all of them as `those`.

    >>> did_you_mean("densty", ["density", "weight"], "parameters")
    "; did you mean 'density'?"
    >>> did_you_mean("x", ["density", "weight"], "parameters")
    '; the parameters are density, weight'
    """
    names = list(choices)
    guess = nearest(name, names)
    if guess is not None:
        return f"; did you mean {quoted(guess)}?"
    if not names:
        return f"; there are no {those}"
    if len(names) == 1:
        return f"; there is only {quoted(names[0])}"
    return f"; the {those} are {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"


def quoted(text: str) -> str:
    """`text` in quotes, on one line and not too long."""
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 3] + "...")
