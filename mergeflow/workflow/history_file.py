"""Where the last run of a recipe leaves what its tensors were made of, for the next plan to say what changed.

One JSON file for each recipe file (and each candidate of its sweeps), in this machine's state folder. It only explains,
so a damaged, missing or older one is the same as none, and a state folder that cannot be written is no reason for a run
to fail.

Names of tensors stand once, in a table; a list of tensors is the runs of that table it goes through, and their
keys are one text:

    {"format": 2, "names": ["a", "b", "c"], "models": {...},
     "steps": {"skills": {"tensors": [[0, 3]], "keys": "<12 characters each>", "makings": [...], "made": [[0, 3]]}}}
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

import blake3

from mergeflow.graph.history import (
    KEY_LENGTH,
    STATISTIC_LENGTH,
    FileHistory,
    History,
    Making,
    Reading,
    ResolvedValue,
    StepHistory,
)
from mergeflow.recipe.records import Recipe

FORMAT = 2
# Some twenty times what a recipe of five steps over 10,000 tensors leaves.
MOST_BYTES = 64 << 20

Json = Mapping[str, object]


def read_history(state: Path, recipe: Recipe) -> History | None:
    """The last run of this recipe file; None when there was none, or its file cannot be read."""
    try:
        with _file(state, recipe).open("rb") as stream:
            text = stream.read(MOST_BYTES + 1)
        return decoded(text) if len(text) <= MOST_BYTES else None
    except OSError:
        return None


def write_history(state: Path, recipe: Recipe, history: History) -> None:
    """Remember a run that succeeded."""
    path = _file(state, recipe)
    draft = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(encoded(history))
        draft.replace(path)
    except OSError:
        return


def _file(state: Path, recipe: Recipe) -> Path:
    which = os.path.abspath(recipe.file) + (f"\0{recipe.candidate}" if recipe.candidate else "")
    name = blake3.blake3(os.fsencode(which)).hexdigest(16)
    return state / "runs" / f"{name}.json"


def encoded(history: History) -> bytes:
    """The file's contents."""
    names: dict[str, int] = {}
    contents = {
        "format": FORMAT,
        "seed": history.seed,
        "versions": dict(history.versions),
        "models": {
            model: {label: _file_json(file, names) for label, file in files.items()}
            for model, files in history.models.items()
        },
        "steps": {name: _step_json(step, names) for name, step in history.steps.items()},
    }
    return json.dumps({**contents, "names": list(names)}, separators=(",", ":")).encode()


def decoded(text: bytes) -> History | None:
    """What `encoded` made; None when it is damaged, or of another format."""
    try:
        contents = json.loads(text)
        if contents["format"] != FORMAT:
            return None
        names = _texts(contents["names"])
        return History(
            seed=_integer(contents["seed"]),
            versions={op: _integer(version) for op, version in _object(contents["versions"]).items()},
            models={
                model: {label: _file_of(_object(file), names) for label, file in _object(files).items()}
                for model, files in _object(contents["models"]).items()
            },
            steps={name: _step_of(_object(step), names) for name, step in _object(contents["steps"]).items()},
        )
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return None


def _file_json(file: FileHistory, names: dict[str, int]) -> Json:
    return {"size": file.size, "mtime_ns": file.mtime_ns, **_column(file.digests, names)}


def _file_of(file: Json, names: Sequence[str]) -> FileHistory:
    return FileHistory(_integer(file["size"]), _integer(file["mtime_ns"]), _from_column(file, names))


def _step_json(step: StepHistory, names: dict[str, int]) -> Json:
    makings: dict[int, int] = {}
    reads: dict[int, int] = {}
    # The same object for all tensors it is the same for (graph.history): an identity is cheaper than a hash.
    made = [makings.setdefault(id(it), len(makings)) for it in step.makings.values()]
    read = [reads.setdefault(id(it), len(reads)) for it in step.reads.values()]
    tables = {id(it): it for it in step.makings.values()}, {id(it): it for it in step.reads.values()}
    return {
        "method": step.method,
        "identity": dict(step.identity),
        "settings": dict(step.settings),
        **_column(step.keys, names),
        "makings": [[list(map(list, (it := tables[0][i]).values)), it.rounded, it.words] for i in makings],
        "made": _repeats(made),
        "reads": [tables[1][i] for i in reads],
        "read": _repeats(read),
        "statistics": "".join(sorted(step.statistics)),
    }


def _step_of(step: Json, names: Sequence[str]) -> StepHistory:
    keys = _from_column(step, names)
    makings = [_making_of(it) for it in _list(step["makings"])]
    reads = [_reading_of(it) for it in _list(step["reads"])]
    made, read = _from_repeats(step["made"], len(keys)), _from_repeats(step["read"], len(keys))
    statistics = _text(step["statistics"])
    return StepHistory(
        method=_text(step["method"]),
        settings={path: _text(value) for path, value in _object(step["settings"]).items()},
        identity={field: _text(value) for field, value in _object(step["identity"]).items()},
        keys=keys,
        makings={name: makings[i] for name, i in zip(keys, made, strict=True)},
        reads={name: reads[i] for name, i in zip(keys, read, strict=True)},
        statistics=frozenset(statistics[i : i + STATISTIC_LENGTH] for i in range(0, len(statistics), STATISTIC_LENGTH)),
    )


def _making_of(entry: object) -> Making:
    values, rounded, words = _list(entry)
    return Making(tuple(ResolvedValue(*_texts(value)) for value in _list(values)), _text(rounded), _text(words))


def _reading_of(entry: object) -> Reading:
    return tuple((_text(label), _text(name)) for label, name in map(_list, _list(entry)))


def _column(keys: Mapping[str, str], names: dict[str, int]) -> Json:
    """Keys by tensor: the runs of the table of names, and the keys one behind the other."""
    places = [names.setdefault(name, len(names)) for name in keys]
    runs: list[list[int]] = []
    for place in places:
        if runs and runs[-1][1] == place:
            runs[-1][1] += 1
        else:
            runs.append([place, place + 1])
    return {"tensors": runs, "keys": "".join(keys.values())}


def _from_column(entry: Json, names: Sequence[str]) -> dict[str, str]:
    keys = _text(entry["keys"])
    runs = [(_integer(first), _integer(behind)) for first, behind in map(_list, _list(entry["tensors"]))]
    # Not one name more than there are keys: a damaged file must not fill the memory.
    if sum(behind - first for first, behind in runs) * KEY_LENGTH != len(keys):
        raise ValueError("as many keys as tensors")
    if any(not 0 <= first <= behind <= len(names) for first, behind in runs):
        raise ValueError("names that are not there")
    found = [name for first, behind in runs for name in names[first:behind]]
    return {name: keys[i * KEY_LENGTH : (i + 1) * KEY_LENGTH] for i, name in enumerate(found)}


def _repeats(numbers: Iterable[int]) -> list[list[int]]:
    """Numbers as pairs: each with how often it comes one behind the other."""
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][0] == number:
            found[-1][1] += 1
        else:
            found.append([number, 1])
    return found


def _from_repeats(entry: object, total: int) -> list[int]:
    pairs = [(_integer(number), _integer(count)) for number, count in map(_list, _list(entry))]
    if any(number < 0 or count < 0 for number, count in pairs) or sum(count for _, count in pairs) != total:
        raise ValueError("one number for each tensor")
    return [number for number, count in pairs for _ in range(count)]


def _object(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise TypeError("an object")
    return cast("dict[str, object]", value)


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError("a list")
    return cast("list[object]", value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a text")
    return value


def _texts(value: object) -> list[str]:
    return [_text(item) for item in _list(value)]


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError("a whole number")
    return value
